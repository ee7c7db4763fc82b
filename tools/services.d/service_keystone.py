"""Keystone on SQLite: a user, one without rights, one of another project, an application credential, an S3 key.

The catalog names Swift's proxy of the same state directory, whether that runs or not.
"""

import importlib.util
import json
import sys
import urllib.error
import urllib.request
from pathlib import Path

from state import HOST, Failure, Missing, answers

# Each process listens on the port of its name.
PROCESSES = ("keystone",)
REGION = "RegionOne"
SERVICE_USER, SERVICE_PASSWORD = "swift", "service-secret"
ADMIN_PASSWORD = "admin-secret"
SERVE = Path(__file__).with_name("serve_keystone.py")
CONFIG = """\
[DEFAULT]
use_stderr = true
public_endpoint = http://{host}:{port}
[database]
connection = sqlite:///{path}/keystone.db
[token]
expiration = {token_life}
[fernet_tokens]
key_repository = {path}/fernet-keys
[fernet_receipts]
key_repository = {path}/fernet-keys
[credential]
key_repository = {path}/credential-keys
[identity]
# Passwords are hashed as cheaply as can be: nobody attacks this one.
password_hash_rounds = 4
[cache]
enabled = true
# One that hands out copies: Keystone changes what it gets.
backend = dogpile.cache.memory_pickle
[oslo_policy]
policy_dirs = {path}/policy.d
[oslo_messaging_notifications]
driver = noop
"""


def check_installed():
    """Fails where the packages are missing."""
    missing = [name for name in ("keystone", "keystonemiddleware") if not importlib.util.find_spec(name)]
    if missing:
        raise Missing("keystone", [f"python3-{name}" for name in missing])


def is_current(state):
    """Whether the server was ready once."""
    return state.facts("keystone") is not None


def start(state, args):
    """Starts the server on a fresh or an earlier database, and makes sure that everybody is there."""
    etc = state.path / "keystone"
    for name in ("fernet-keys", "credential-keys", "policy.d"):
        (etc / name).mkdir(parents=True, exist_ok=True)
        (etc / name).chmod(0o700)
    conf = etc / "keystone.conf"
    conf.write_text(CONFIG.format(host=HOST, port=state.port("keystone"), path=etc, token_life=args.token_life))
    url = f"http://{HOST}:{state.port('keystone')}/v3"
    state.spawn("keystone", [sys.executable, "-B", SERVE, conf, state.port("keystone"), url, ADMIN_PASSWORD],
                OS_KEYSTONE_CONFIG_FILES=conf)
    wait(state)
    return {"url": url, "region": REGION, "domain": "Default", **populate(url, state)}


def wait(state):
    """Waits until the server answers; the first time it makes its database before."""
    url = f"http://{HOST}:{state.port('keystone')}/v3"
    state.wait(["keystone"], "Keystone", lambda: answers(url))


class Client:
    """Keystone's API as one user sees it."""

    def __init__(self, url, user, password, project):
        self.url, self.token, self.who = url, None, (user, password, project)
        self.log_in(*self.who)

    def log_in(self, user, password, project):
        """Gets a token."""
        domain = {"name": "Default"}
        who = {"user": {"name": user, "password": password, "domain": domain}}
        scope = {"project": {"name": project, "domain": domain}}
        body = {"auth": {"identity": {"methods": ["password"], "password": who}, "scope": scope}}
        headers, _ = self.send("POST", "/auth/tokens", body)
        self.token = headers["X-Subject-Token"]

    def send(self, method, path, body=None, again=True):
        """One request; returns the headers and the decoded body of the answer."""
        headers = {"Content-Type": "application/json", **({"X-Auth-Token": self.token} if self.token else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                text = reply.read()
                return reply.headers, json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            if error.code == 401 and self.token and again:
                # Tokens may live for seconds only.
                self.token = None
                self.log_in(*self.who)
                return self.send(method, path, body, again=False)
            raise Failure(f"Keystone: {method} {path}: {error.code} {error.read()[:300]}") from None

    def ensure(self, kind, name, **more):
        """The id of the thing called `name`, which is made if it is not there."""
        plural = f"{kind}s"
        _, found = self.send("GET", f"/{plural}?name={name}")
        if not found[plural]:
            _, made = self.send("POST", f"/{plural}", {kind: {"name": name, **more}})
            return made[kind]["id"]
        return found[plural][0]["id"]


def populate(url, state):
    """Everybody and everything that tests need; what is there already stays."""
    admin = Client(url, "admin", ADMIN_PASSWORD, "admin")
    roles = {name: admin.ensure("role", name) for name in ("admin", "member", "guest")}
    projects = {name: admin.ensure("project", name, domain_id="default") for name in ("service", "demo", "elsewhere")}
    users = (
        (SERVICE_USER, SERVICE_PASSWORD, "service", "admin"),
        ("demo", "demo-secret", "demo", "member"),
        ("guest", "guest-secret", "demo", "guest"),
        ("stranger", "stranger-secret", "elsewhere", "member"),
    )
    ids = {}
    for name, password, project, role in users:
        ids[name] = admin.ensure("user", name, domain_id="default", password=password)
        admin.send("PUT", f"/projects/{projects[project]}/users/{ids[name]}/roles/{roles[role]}")
    service = admin.ensure("service", "swift", type="object-store")
    _, known = admin.send("GET", f"/endpoints?service_id={service}")
    for interface in ("public", "internal", "admin"):
        if not any(endpoint["interface"] == interface for endpoint in known["endpoints"]):
            admin.send("POST", "/endpoints", {"endpoint": {
                "interface": interface, "region": REGION, "service_id": service,
                "url": f"http://{HOST}:{state.port('proxy')}/v1/AUTH_%(project_id)s"}})

    # Secrets are shown once, when they are made: so the ones of an earlier start are replaced.
    demo = Client(url, "demo", "demo-secret", "demo")
    own = f"/users/{ids['demo']}"
    _, old = demo.send("GET", f"{own}/application_credentials")
    for credential in old["application_credentials"]:
        demo.send("DELETE", f"{own}/application_credentials/{credential['id']}")
    _, made = demo.send("POST", f"{own}/application_credentials",
                        {"application_credential": {"name": "backup", "roles": [{"id": roles["member"]}]}})
    _, key = demo.send("POST", f"{own}/credentials/OS-EC2", {"tenant_id": projects["demo"]})
    return {
        "user": "demo", "password": "demo-secret", "project": "demo", "project_id": projects["demo"],
        "application_credential_id": made["application_credential"]["id"],
        "application_credential_secret": made["application_credential"]["secret"],
        "ec2_access": key["credential"]["access"], "ec2_secret": key["credential"]["secret"],
        "guest_user": "guest", "guest_password": "guest-secret",
        "other_user": "stranger", "other_password": "stranger-secret", "other_project": "elsewhere",
    }
