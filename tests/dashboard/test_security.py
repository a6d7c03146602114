"""Nobody gets in, gets through or gets out who should not; over every route there is."""

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import nodes

from otf_workflows.dashboard import app as application
from otf_workflows.dashboard.rendering import environment
from otf_workflows.dashboard.security import (
    CONTENT_SECURITY_POLICY,
    MAX_BODY_BYTES,
    MAX_TRIES,
    TRY_WINDOW_S,
    Doorkeeper,
    host_of,
    same_origin,
)
from otf_workflows.dashboard.settings import DashboardSettings
from otf_workflows.settings import Site

FOLDER = Path(application.__file__).parent
TEMPLATES = sorted((FOLDER / "templates").rglob("*.jinja"))
SCRIPTS = sorted((FOLDER / "static").glob("*.js"))
STYLES = sorted((FOLDER / "static").glob("*.css"))
TOKEN = "a-token-for-tests-of-thirty-characters"
OPEN = {"login", "enter"}
PLACES = {"name": "nobody", "campaign": "nobody", "key": "0" * 64, "model_id": "nobody"}


def routes():
    """Every method and address of the application, with something in each place."""
    for router in application.ROUTERS:
        for route in router.routes:
            path = re.sub(r"{(\w+)(:\w+)?}", lambda place: PLACES.get(place[1], "1"), route.path)
            for method in sorted(route.methods - {"HEAD"}):
                yield pytest.param(method, path, route.name, id=f"{method} {route.path}")


READS = [case for case in routes() if case.values[0] == "GET"]
WRITES = [case for case in routes() if case.values[0] != "GET"]


@pytest.fixture
def bare():
    """The gates around the application, which no request of these tests passes."""
    from starlette.testclient import TestClient

    def make(**options):
        settings = DashboardSettings(site=Site(), token=TOKEN, port=8700, **options)
        # Not entered, so that nothing looks for a database.
        return TestClient(
            application.create_app(settings),
            base_url="http://localhost:8700",
            follow_redirects=False,
        )

    return make


@pytest.mark.parametrize(("method", "path", "name"), list(routes()))
def test_every_route_but_the_login_wants_a_token(bare, method, path, name):
    answer = bare(allow_actions=True).request(method, path)
    assert answer.status_code == (200 if method == "GET" else 422) if name in OPEN else 401


# The login changes nothing but a cookie.
@pytest.mark.parametrize(("method", "path", "name"), [w for w in WRITES if w.values[2] not in OPEN])
def test_every_write_is_refused_by_a_dashboard_that_only_looks(bare, method, path, name):
    answer = bare().request(method, path, headers={"authorization": f"Bearer {TOKEN}"})
    assert answer.status_code == 403
    assert "--allow-actions" in answer.text


@pytest.mark.parametrize(("method", "path", "name"), WRITES)
@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"origin": "http://localhost:9999"},
    ],
    ids=lambda headers: " ".join(headers.values()),
)
def test_every_write_from_another_web_page_is_refused(bare, method, path, name, headers):
    client = bare(allow_actions=True)
    client.cookies.set("otf_session_8700", cookie_value())
    answer = client.request(method, path, headers=headers)
    assert answer.status_code == 403
    assert "another web page" in answer.text


@pytest.mark.parametrize(("method", "path", "name"), list(routes()))
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8700", "127.0.0.1.nip.io", ""])
def test_every_route_refuses_a_host_name_that_is_not_ours(bare, method, path, name, host):
    headers = {"host": host, "authorization": f"Bearer {TOKEN}"}
    assert bare(allow_actions=True).request(method, path, headers=headers).status_code == 400


@pytest.mark.usefixtures("at_work")
def test_no_read_leaves_a_trace(client, database):
    before = fingerprint(database)
    for case in READS:
        _, path, name = case.values
        if name == "events":  # a stream that does not end; see test_live.py
            continue
        answer = client.get(path, params={"token": "wrong"} if name == "login" else None)
        assert answer.status_code < 500, path
        assert fingerprint(database) == before, path


def fingerprint(database):
    return {
        name: (
            database[name].count_documents({}),
            repr(database[name].find_one({}, sort=[("_id", -1)])),
        )
        for name in sorted(database.list_collection_names())
    }


def cookie_value():
    return Doorkeeper(DashboardSettings(site=Site(), token=TOKEN)).cookie_value


# -- the gates one by one --------------------------------------------------------------------------


def test_a_token_in_the_address_becomes_a_cookie_and_leaves_the_address(bare):
    client = bare()
    answer = client.get("/login", params={"token": TOKEN})
    cookie = answer.headers["set-cookie"]
    assert answer.status_code == 200
    assert TOKEN not in answer.text
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert cookie.startswith("otf_session_8700=")
    assert client.get("/events", headers={"cookie": "otf_session_8700=wrong"}).status_code == 401


def test_a_wrong_token_is_refused_and_soon_not_even_looked_at(bare):
    client = bare()
    for _ in range(MAX_TRIES):
        assert client.post("/login", data={"token": "wrong"}).status_code == 401
    assert client.post("/login", data={"token": TOKEN}).status_code == 429
    assert client.get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 429


def test_after_a_minute_the_right_token_is_taken_again():
    clock = [0.0]
    doorkeeper = Doorkeeper(DashboardSettings(site=Site(), token=TOKEN), clock=lambda: clock[0])
    for _ in range(MAX_TRIES):
        doorkeeper.token_is_right("wrong")
    assert doorkeeper.tired
    clock[0] = TRY_WINDOW_S + 1
    assert not doorkeeper.tired
    assert doorkeeper.token_is_right(TOKEN)


def test_a_browser_without_a_token_is_led_to_the_login_and_a_script_is_told(bare):
    page = bare().get("/", headers={"accept": "text/html"})
    assert (page.status_code, page.headers["location"]) == (303, "/login")
    fragment = bare().get("/", headers={"accept": "text/html", "hx-request": "true"})
    assert fragment.status_code == 401


@pytest.mark.parametrize("host", ["localhost:8700", "127.0.0.1:1234", "[::1]:8700", "LOCALHOST"])
def test_our_own_names_are_let_in(bare, host):
    assert bare().get("/login", headers={"host": host}).status_code == 200


def test_a_proxy_is_let_in_by_name(bare):
    client = bare(allowed_hosts=("portal.example",))
    assert client.get("/login", headers={"host": "portal.example"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "none"}, True),
        (
            {"sec-fetch-site": "cross-site", "origin": "http://localhost:1", "host": "localhost:1"},
            False,
        ),
        ({"origin": "http://localhost:1", "host": "localhost:1"}, True),
        ({"origin": "http://localhost:2", "host": "localhost:1"}, False),
        ({"origin": "http://[", "host": "localhost:1"}, False),
    ],
)
def test_the_origin_of_a_write_is_judged_as_browsers_tell_it(headers, ours):
    assert same_origin(headers) is ours


@pytest.mark.parametrize("value", ["", "[", "a b:c:d", "host:notaport"])
def test_a_host_header_that_makes_no_sense_is_nobody(value):
    assert host_of(value) not in {"localhost", "127.0.0.1", "::1"}


def test_a_request_that_says_it_is_too_large_is_refused(bare):
    answer = bare().post(
        "/login", content=b"x", headers={"content-length": str(MAX_BODY_BYTES + 1)}
    )
    assert answer.status_code == 413


def test_a_request_that_is_too_large_without_saying_so_is_cut_off(bare):
    def endless():
        for _ in range(5):
            yield b"token=" + b"x" * (MAX_BODY_BYTES // 3)

    client = bare()
    client._transport.raise_server_exceptions = False
    answer = client.post(
        "/login", content=endless(), headers={"content-type": "application/x-www-form-urlencoded"}
    )
    assert answer.status_code >= 400


def test_headers_forbid_frames_sources_from_elsewhere_and_inline_scripts(bare):
    headers = bare().get("/login").headers
    policy = headers["content-security-policy"]
    assert "script-src 'self';" in policy
    assert "frame-ancestors 'none'" in policy
    assert "http" not in policy
    assert "unsafe-eval" not in policy
    assert "unsafe-inline" not in CONTENT_SECURITY_POLICY["script-src"]
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_refusals_carry_the_same_headers(bare):
    assert "content-security-policy" in bare().get("/jobs").headers


# -- prefixes of proxies ---------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["/jobs", "/proxy/8700/jobs"])
def test_a_prefix_works_whether_the_proxy_strips_it_or_not(visit, settings, at_work, asked):
    client = visit(replace(settings, root_path="/proxy/8700"))
    page = client.get(asked)
    assert page.status_code == 200
    for address in re.findall(r'(?:href|src|action|hx-get|data-[\w-]+)="(/[^"]*)"', page.text):
        assert address.startswith("/proxy/8700/"), address
        if "/static/" in address:
            assert client.get(address).status_code == 200


# -- what the pages are made of ------------------------------------------------------------------


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_have_no_inline_scripts_handlers_or_sources_from_elsewhere(path):
    text = path.read_text()
    assert not re.search(r"<script(?![^>]*\bsrc=)", text)
    assert not re.search(r"<style\b", text)
    assert not re.search(r"<[^>%]*\son\w+\s*=", text)
    assert not re.search(r"javascript:", text, re.IGNORECASE)
    assert not re.search(r"(?:src|href|action|data-[\w-]+|hx-\w+)\s*=\s*[\"'](?:https?:)?//", text)
    assert not re.search(r"\bhx-on\b|\bjs:", text)


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_never_switch_escaping_off(path):
    tree = environment().parse(path.read_text())
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    assert "safe" not in filters
    assert "autoescape" not in path.read_text()


@pytest.mark.parametrize("path", SCRIPTS + STYLES, ids=lambda path: path.name)
def test_our_own_static_files_load_nothing_from_elsewhere(path):
    text = path.read_text()
    without_comments = re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE)
    assert not re.search(r"(?:https?:)?//[a-z0-9-]+\.[a-z]{2,}", without_comments)
    assert not re.search(r"\beval\(|new Function|innerHTML|outerHTML|document\.write", text)
    assert "@import" not in text


def test_vendored_files_are_those_that_are_listed():
    import hashlib

    vendor = FOLDER / "static" / "vendor"
    listed = {"VENDOR.toml"}
    for library in tomllib.loads((vendor / "VENDOR.toml").read_text()).values():
        assert library["licence"] in {"0BSD", "MIT", "BSD-3-Clause"}
        for name, file in library["files"].items():
            assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == file["sha256"]
            listed.add(name)
    assert {path.name for path in vendor.iterdir()} == listed


# -- text from others ----------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{7*7}}<script>alert(2)</script>"


def test_hostile_names_messages_and_logs_stay_text(client, database, store, at_work, tmp_path):
    folder = tmp_path / "launch"
    folder.mkdir()
    (folder / "job.out").write_text(f"log {HOSTILE}\n\x1b[31mred")
    (folder / f"{HOSTILE.replace('/', '-')}.txt").write_text("x")
    database.fireworks.update_many({}, {"$set": {"name": HOSTILE}})
    database.workflows.update_many({}, {"$set": {"name": HOSTILE}})
    database.launches.update_many(
        {"action": {"$ne": None}},
        {
            "$set": {
                "launch_dir": str(folder),
                "host": HOSTILE,
                "fworker.name": HOSTILE,
                "action.stored_data._exception._details": None,
                "action.stored_data._exception._stacktrace": f"Error: {HOSTILE}",
            }
        },
    )
    database.otf_labels.update_many(
        {"state": "failed"}, {"$set": {"reason": HOSTILE, "attempts.0.last_lines": [HOSTILE]}}
    )
    store.event(HOSTILE, campaign=at_work, who=HOSTILE)
    failed = database.fireworks.find_one({"state": "FIZZLED"})["fw_id"]
    label = database.otf_labels.find_one({"state": "failed"})["key"]
    for address in (
        "/", "/jobs", "/jobs/workflows", f"/jobs/workflows/{failed}", f"/jobs/{failed}", "/health",
        "/labels", "/labels?state=failed", f"/labels/{label}", f"/c/{at_work}", "/campaigns",
        "/jobs?text=" + "%3Cscript%3E%22", "/labels?text=" + "%3Cscript%3E%22",
        "/%3Cscript%3Ealert(3)%3C/script%3E",
    ):  # fmt: skip
        page = client.get(address)
        assert page.status_code in {200, 404}, address
        assert "<img src=x" not in page.text, address
        assert "<script>" not in page.text, address
        assert "49" not in re.findall(r"&amp;(\d+)&lt;script", page.text), address


def test_a_launch_folder_gives_nothing_but_ordinary_logs(tmp_path):
    import os

    from otf_workflows.dashboard.queries.job_detail import LOG_BYTES, look_into

    secret = tmp_path / "secret"
    secret.write_text("the password")
    folder = tmp_path / "launch"
    folder.mkdir()
    (folder / "job.out").symlink_to(secret)
    os.mkfifo(folder / "FW_job.error")
    assert look_into(str(folder)).log_tail == ""
    (folder / "FW_job.out").write_text("line\n" * LOG_BYTES)
    seen = look_into(str(folder))
    assert 0 < len(seen.log_tail) <= LOG_BYTES
    assert seen.log_tail.startswith("line\n")
    assert not look_into("relative/path").visible
    assert not look_into(str(tmp_path / "gone")).visible


def test_specifications_are_shown_without_secrets_and_long_lists():
    from otf_workflows.dashboard.queries.job_detail import spec_text

    shown = json.loads(
        spec_text({"store": {"password": "hush", "token": ""}, "xs": list(range(1000))})
    )
    assert shown == {"store": {"password": "(not shown)", "token": ""}, "xs": [0, 1, "… 998 more"]}


def test_the_settings_do_not_print_the_token():
    assert TOKEN not in repr(DashboardSettings(site=Site(), token=TOKEN))
