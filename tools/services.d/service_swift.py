"""OpenStack Swift: a proxy, an account, a container and an object server, and memcached for their tokens.

Objects lie in plain directories with extended attributes. Accounts come from Swift itself (tempauth) and, where a
Keystone of the same state directory runs, from that; S3 keys likewise. Two storage policies: `gold` is the default,
`silver` the other.
"""

import getpass
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import service_keystone
from state import HOST, Failure, Missing, answers

# Each process listens on the port of its name.
PROCESSES = ("proxy", "account", "container", "object", "memcached")
REGION = "us-east-1"
POLICIES = ("gold", "silver")
SERVE = Path(__file__).with_name("serve_swift.py")


def check_installed():
    """Fails where the packages are missing."""
    missing = [] if importlib.util.find_spec("swift") else ["python3-swift"]
    missing += [program for program in ("memcached", "openssl") if not shutil.which(program)]
    if missing:
        raise Missing("swift", missing)


def is_current(state):
    """Whether the servers that run know of the Keystone that runs."""
    facts, identity = state.facts("swift"), state.facts("keystone")
    return bool(facts) and facts["keystone"] == (identity and identity["url"])


def start(state, args):
    """Writes the configuration and starts everything; returns what clients need to know."""
    etc = state.path / "swift"
    etc.mkdir(exist_ok=True)
    (state.path / "recon").mkdir(exist_ok=True)
    for device in range(args.replicas):
        (state.path / "srv" / f"d{device}").mkdir(parents=True, exist_ok=True)
    write(etc / "swift.conf", {
        "swift-hash": {"swift_hash_path_prefix": "before", "swift_hash_path_suffix": "after"},
        **{f"storage-policy:{n}": {"name": name, "default": "yes" if n == 0 else "no"}
           for n, name in enumerate(POLICIES)},
        "swift-constraints": {},
    })
    for kind in ("account", "container", "object"):
        write(etc / f"{kind}.conf", storage_server(state, kind))
    authority = make_certificates(etc) if args.tls else None
    write(etc / "proxy.conf", proxy_server(state, args))
    write_rings(state, etc, args.replicas)

    state.spawn("memcached", ["memcached", "-u", getpass.getuser(), "-l", HOST, "-p", state.port("memcached"), "-U", 0,
                              "-m", 16, "-t", 1])
    for kind in ("account", "container", "object", "proxy"):
        state.spawn(kind, [sys.executable, "-B", SERVE, kind, etc / f"{kind}.conf"])
    wait(state)
    url = proxy_url(state)
    return {
        "url": url, "authority": authority and str(authority), "region": REGION, "auth": f"{url}/auth/v1.0", "user": "test:tester", "key": "testing",
        # The same account without its rights, for access lists; an account of its own; the one who may do everything.
        "guest_user": "test:guest", "guest_key": "guesting",
        "other_user": "other:tester", "other_key": "testing",
        "admin_user": "admin:admin", "admin_key": "administering",
        "keystone": (state.facts("keystone") or {}).get("url"), "policies": list(POLICIES),
        "devices": str(state.path / "srv"),
    }


def proxy_url(state):
    """Where clients find the proxy."""
    tls = "cert_file" in (state.path / "swift" / "proxy.conf").read_text()
    return f"{'https' if tls else 'http'}://{HOST}:{state.port('proxy')}"


def wait(state):
    """Waits until every server answers."""
    urls = {kind: f"http://{HOST}:{state.port(kind)}" for kind in ("account", "container", "object")}
    for kind, url in {**urls, "proxy": proxy_url(state)}.items():
        state.wait([kind, "memcached"], f"Swift's {kind} server", lambda url=url: answers(f"{url}/healthcheck"))


def make_certificates(etc):
    """A certificate for the proxy and the authority that signed it, whom nobody trusts by themselves; returns the
    authority's file."""
    authority, key = etc / "authority.pem", etc / "authority.key"
    request, extensions = etc / "proxy.csr", etc / "extensions"
    extensions.write_text(f"subjectAltName = IP:{HOST}\nbasicConstraints = CA:FALSE\n")
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    for argv in ([*new, "-x509", "-days", "30", "-subj", "/CN=authority", "-keyout", key, "-out", authority],
                 [*new, "-subj", "/CN=proxy", "-keyout", etc / "proxy.key", "-out", request],
                 ["openssl", "x509", "-req", "-days", "30", "-in", request, "-CA", authority, "-CAkey", key,
                  "-CAcreateserial", "-extfile", extensions, "-out", etc / "proxy.pem"]):
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise Failure(f"openssl: {done.stderr[-1000:]}")
    return authority


def catch_up(state):
    """Does at once what the servers would do within minutes, if they ran their daemons."""
    for kind in ("object", "container"):
        conf = state.path / "swift" / f"{kind}.conf"
        argv = [sys.executable, "-B", SERVE, f"{kind}-updater", conf]
        done = subprocess.run(argv, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise Failure(f"Swift's {kind}-updater: {done.stderr[-1000:]}")


def write(path, sections):
    """Writes a configuration file: its sections in order, each a dictionary."""
    lines = []
    for section, settings in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in settings.items()), ""]
    path.write_text("\n".join(lines))


def common(state, kind):
    """What every server is told."""
    return {"bind_ip": HOST, "bind_port": state.port(kind), "workers": 0, "user": getpass.getuser(),
            "swift_dir": state.path / "swift", "log_level": "INFO"}


def egg(name, **settings):
    """A part of a pipeline that Swift brings."""
    return {"use": f"egg:swift#{name}", **settings}


def storage_server(state, kind):
    """The account, container or object server."""
    return {
        "DEFAULT": {
            **common(state, kind), "devices": state.path / "srv", "mount_check": "false",
            "recon_cache_path": state.path / "recon",
            # The disk may be nearly full, or one in memory: it is to be used to its last byte.
            "fallocate_reserve": 0, "disable_fallocate": "yes",
        },
        "pipeline:main": {"pipeline": f"healthcheck {kind}-server"},
        f"app:{kind}-server": egg(kind),
        "filter:healthcheck": egg("healthcheck"),
        # For the updaters, which a test runs by hand: what they find undone they do at once.
        f"{kind}-updater": {"interval": 1, "slowdown": 0},
    }


def proxy_server(state, args):
    """The proxy: who may do what, Swift's own protocol and S3."""
    identity = state.facts("keystone")
    memory = {"memcache_servers": f"{HOST}:{state.port('memcached')}"}
    # Keystone's middleware removes what the client says of itself, so it comes before everything that says who it is.
    # Tokens of one kind of account are left alone by the other.
    auth = ["authtoken", "s3api", "s3token", "keystoneauth", "tempauth"] if identity else ["s3api", "tempauth"]
    pipeline = ["catch_errors", "gatekeeper", "healthcheck", "proxy-logging", "cache", "listing_formats", "bulk",
                "tempurl", *auth, "copy", "container-quotas", "account-quotas", "slo", "dlo", "versioned_writes", "symlink",
                "proxy-logging", "proxy-server"]
    tls = {"cert_file": state.path / "swift" / "proxy.pem", "key_file": state.path / "swift" / "proxy.key"}
    sections = {
        "DEFAULT": {**common(state, "proxy"), **(tls if args.tls else {})},
        "pipeline:main": {"pipeline": " ".join(pipeline)},
        # There is one device: an error must not put it out of use for a minute.
        "app:proxy-server": egg("proxy", account_autocreate="true", allow_account_management="true",
                                error_suppression_interval=0, error_suppression_limit=1_000_000),
        "filter:tempauth": egg("tempauth", reseller_prefix="TEMP" if identity else "AUTH", token_life=args.token_life,
                               user_admin_admin="administering .admin .reseller_admin",
                               user_test_tester="testing .admin", user_test_guest="guesting",
                               user_other_tester="testing .admin"),
        "filter:s3api": egg("s3api", location=REGION, dns_compliant_bucket_names="true", s3_acl="false",
                            auth_pipeline_check="false"),
        "filter:cache": egg("memcache", **memory),
        "filter:slo": egg("slo", min_segment_size=1),
        "filter:versioned_writes": egg("versioned_writes", allow_versioned_writes="true",
                                       allow_object_versioning="true"),
    }
    for part in pipeline[:-1]:
        sections.setdefault(f"filter:{part}", egg(part.replace("-", "_")))
    if identity:
        asking = {"auth_url": identity["url"], "auth_type": "password", "username": service_keystone.SERVICE_USER,
                  "password": service_keystone.SERVICE_PASSWORD, "project_name": "service",
                  "user_domain_name": "Default", "project_domain_name": "Default"}
        sections["filter:authtoken"] = {
            "paste.filter_factory": "keystonemiddleware.auth_token:filter_factory",
            "www_authenticate_uri": identity["url"], "delay_auth_decision": "true", "cache": "swift.cache",
            "memcached_servers": memory["memcache_servers"], "include_service_catalog": "false",
            "service_token_roles_required": "false", **asking,
        }
        sections["filter:keystoneauth"] = egg("keystoneauth", reseller_prefix="AUTH", operator_roles="admin, member")
        sections["filter:s3token"] = egg("s3token", auth_uri=identity["url"], reseller_prefix="AUTH_",
                                         delay_auth_decision="true", secret_cache_duration=60, **asking)
    return sections


def write_rings(state, etc, replicas):
    """Where everything lies: each replica in a directory of its own, behind the same servers."""
    # Only here: `check_installed` has its say before.
    from swift.common.ring import RingBuilder

    rings = [("account", "account"), ("container", "container")]
    rings += [("object", "object" if n == 0 else f"object-{n}") for n in range(len(POLICIES))]
    for kind, name in rings:
        builder = RingBuilder(4, replicas, 0)
        for n in range(replicas):
            builder.add_dev({"region": 1, "zone": n, "device": f"d{n}", "weight": 1.0, "meta": "", "ip": HOST,
                             "port": state.port(kind), "replication_ip": HOST, "replication_port": state.port(kind)})
        builder.rebalance(seed=1)
        builder.get_ring().save(str(etc / f"{name}.ring.gz"))
