"""An SQL dump of a compute service's instance table on several days, made from a fixed seed.

Every row is a pure function of its number and its version, so all days can be written in one pass and
always come out the same. Each day is the day before with one row in fifty changed, at scattered places, and one
per cent of new rows at the end: what a nightly dump of a busy database looks like to a backup program.
"""

from hashlib import blake2b

ROWS = 1_625_000
APPENDED = ROWS // 100
CHANGED_ONE_IN = 50
ROWS_PER_INSERT = 2_000

HEAD = """-- Dump of table `instances`
SET NAMES utf8mb4;
CREATE TABLE `instances` (`created_at` datetime, `updated_at` datetime, `id` int NOT NULL AUTO_INCREMENT,
  `user_id` varchar(255), `project_id` varchar(255), `image_ref` varchar(255), `power_state` int, `vm_state` varchar(255),
  `memory_mb` int, `vcpus` int, `hostname` varchar(255), `host` varchar(255), `reservation_id` varchar(255),
  `launched_at` datetime, `availability_zone` varchar(255), `uuid` varchar(36), `root_device_name` varchar(255),
  `task_state` varchar(255), `root_gb` int, `node` varchar(255), `deleted` int, `address` varchar(255),
  `mac_address` varchar(17), `port_id` varchar(36), `key_fingerprint` varchar(255), PRIMARY KEY (`id`));
"""

STATES = ("active", "active", "active", "active", "active", "stopped", "paused", "error")
ROLES = ("web", "db", "cache", "worker", "build", "proxy", "mail", "node")


def _pool(what, count):
    return [blake2b(b"%s %d" % (what, n), digest_size=16).hexdigest() for n in range(count)]


PROJECTS = _pool(b"project", 256)
USERS = _pool(b"user", 1024)
IMAGES = ["-".join((h[:8], h[8:12], h[12:16], h[16:20], h[20:])) for h in _pool(b"image", 64)]


def row(number, version):
    """The text of one row; a later version keeps its identity and changes its state, its host and its times."""
    h = blake2b(b"row %d" % number, digest_size=64).digest()
    x = h.hex()
    day = number * 1800 // ROWS
    created = "20%02d-%02d-%02d %02d:%02d:%02d" % (21 + day // 360, day // 30 % 12 + 1, day % 28 + 1,
                                                   h[0] % 24, h[1] % 60, h[2] % 60)
    v = blake2b(b"version %d %d" % (number, version), digest_size=8).digest() if version else h[3:11]
    if version:
        updated = "2026-11-%02d %02d:%02d:%02d" % (19 + version, v[0] % 24, v[1] % 60, v[2] % 60)
    else:
        updated = "2026-%02d-%02d %02d:%02d:%02d" % (v[3] % 10 + 1, v[4] % 28 + 1, v[0] % 24, v[1] % 60, v[2] % 60)
    host = "compute-%03d.cloud.example.org" % (v[5] % 200)
    gib = 1 << h[14] % 6
    return (
        f"('{created}','{updated}',{number},'{USERS[h[15] * 4 + h[0] % 4]}','{PROJECTS[h[15]]}','{IMAGES[h[16] % 64]}',"
        f"{1 if v[6] % 8 < 5 else 4},'{STATES[v[6] % 8]}',{gib * 1024},{max(1, gib // 2)},"
        f"'{ROLES[h[17] % 8]}-{h[18] % 100:02d}-{x[38:42]}','{host}','r-{x[42:50]}',"
        f"'{created[:17]}{h[13] % 60:02d}','az-{v[5] % 3 + 1}',"
        f"'{x[50:58]}-{x[58:62]}-4{x[62:65]}-a{x[65:68]}-{x[68:80]}',"
        f"'/dev/vda',NULL,{gib * 10},'{host}',0,"
        f"'10.{h[15]}.{h[20]}.{h[21]}',"
        f"'fa:16:3e:{x[40:42]}:{x[44:46]}:{x[46:48]}','{x[80:88]}-{x[88:92]}-4{x[92:95]}-b{x[95:98]}-{x[98:110]}',"
        f"'{x[110:]}{x[24:42]}')"
    )


def changed(number, night):
    """Whether the night after day `night` changes this row: one in CHANGED_ONE_IN, scattered, always the same ones."""
    return (number * 2654435761 + (night - 1) * 0x9E3779B97F4A7C15 >> 7) % CHANGED_ONE_IN == 0


def rows_of(day):
    """How many rows the table has on a day."""
    return ROWS + (day - 1) * APPENDED


def write(*paths):
    """Writes as many days as there are paths, the first of them day 1."""
    days = range(1, len(paths) + 1)
    files = [open(path, "w", encoding="ascii") for path in paths]
    try:
        for file in files:
            file.write(HEAD)
        for start in range(1, rows_of(len(paths)) + 1, ROWS_PER_INSERT):
            numbers = range(start, min(start + ROWS_PER_INSERT, rows_of(len(paths)) + 1))
            texts = {number: row(number, 0) for number in numbers}
            for day, file in zip(days, files):
                there = [number for number in numbers if number <= rows_of(day)]
                for number in there:
                    if day > 1 and number <= rows_of(day - 1) and changed(number, day - 1):
                        texts[number] = row(number, day - 1)
                if there:
                    file.write("INSERT INTO `instances` VALUES " + ",".join(texts[n] for n in there) + ";\n")
    finally:
        for file in files:
            file.close()
