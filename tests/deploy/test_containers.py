"""The compose file, the image and the units are well-formed; no engine runs them here."""

from __future__ import annotations

import configparser
import fnmatch
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text()
UNITS = sorted((ROOT / "deploy/systemd").iterdir())


def test_mongodb_wants_a_password_and_listens_on_loopback_only():
    mongo = COMPOSE["services"]["mongo"]
    assert "--auth" in mongo["command"]
    assert all(port.startswith("127.0.0.1:") for port in mongo["ports"])
    environment = mongo["environment"]
    assert environment["MONGO_INITDB_ROOT_PASSWORD_FILE"].startswith("/run/secrets/")
    assert "MONGO_INITDB_ROOT_PASSWORD" not in environment
    assert re.fullmatch(r"mongo:\d+\.\d+", mongo["image"])
    assert mongo["healthcheck"]["test"][0] == "CMD"
    assert any(volume.endswith(":/data/db") for volume in mongo["volumes"])


def test_workers_wait_for_a_healthy_database():
    otf = COMPOSE["services"]["otf"]
    assert otf["depends_on"]["mongo"]["condition"] == "service_healthy"
    assert otf["init"] is True
    assert "ports" not in otf


def test_secrets_are_declared_and_come_from_files():
    used = {name for service in COMPOSE["services"].values() for name in service["secrets"]}
    assert used == set(COMPOSE["secrets"])
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())


def test_mounted_files_exist_and_are_read_only():
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            if volume.startswith("./"):
                source, _, mode = volume.split(":")
                assert (ROOT / source).is_file()
                assert mode == "ro"


def test_nothing_runs_as_root():
    assert all("user" in service for service in COMPOSE["services"].values())
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users
    assert users[-1] not in {"root", "0"}


def test_site_in_the_container_is_a_valid_site_with_the_user_of_the_script():
    from otf_workflows.settings import Site

    site = Site.model_validate(yaml.safe_load((ROOT / "deploy/compose/site.yaml").read_text()))
    script = (ROOT / "deploy/compose/create_user.js").read_text()
    assert site.database.mode == "server"
    assert site.database.host in COMPOSE["services"]
    assert f'user: "{site.database.username}"' in script
    assert f'role: "readWrite", db: "{site.database.name}"' in script
    assert str(site.database.password_file) in script


def test_the_cluster_in_a_container_is_started_only_when_asked_for():
    assert COMPOSE["services"]["slurm"]["profiles"] == ["slurm"]
    assert not any("profiles" in COMPOSE["services"][name] for name in ("mongo", "otf"))
    installed = re.search(r"apt-get install (.+)", DOCKERFILE).group(1)
    assert {"slurm-wlm", "munge"} <= set(installed.split())


def test_the_cluster_has_the_partitions_of_its_site_and_slurm_finds_its_files():
    from otf_workflows.settings import Site
    from otf_workflows.testing.slurm import PARTITIONS, LocalSlurm

    text = (ROOT / "deploy/compose/site-slurm.yaml").read_text()
    site = Site.model_validate(yaml.safe_load(text))
    plain = yaml.safe_load((ROOT / "deploy/compose/site.yaml").read_text())
    assert site.database.model_dump() == Site.model_validate(plain).database.model_dump()
    assert {queue.partition for queue in site.queues.values()} == set(PARTITIONS)
    service = COMPOSE["services"]["slurm"]
    words = service["command"]
    folder = Path(words[words.index("run") + 1])
    assert service["environment"]["SLURM_CONF"] == str(LocalSlurm(folder).conf)
    assert words[words.index("--") + 1 :] == ["otf", "launch"]


def test_image_has_a_pinned_base_and_leaves_no_package_lists():
    assert re.match(r"FROM \S+:\S*\d", DOCKERFILE)
    assert "rm -rf /var/lib/apt/lists/*" in DOCKERFILE
    assert "--no-install-recommends" in DOCKERFILE
    assert "--no-cache-dir" in DOCKERFILE


def test_what_the_image_copies_is_in_the_build_context():
    kept = [
        line[1:]
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    for line in re.findall(r"^COPY (.+)$", DOCKERFILE, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists()
            assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_unit_is_well_formed(unit):
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str
    parser.read_string(unit.read_text())
    assert parser["Unit"]["Description"]
    assert ("Service" in parser) == (unit.suffix == ".service")
    if unit.suffix == ".service":
        assert parser["Service"]["UMask"] == "0077"


def test_the_unit_of_the_launcher_calls_a_command_that_exists():
    from otf_workflows.cli.main import app

    unit = (ROOT / "deploy/systemd/otf-launch.service").read_text()
    words = re.search(r"^ExecStart=(.+)$", unit, re.MULTILINE).group(1).split()
    assert words[0].endswith("/bin/otf")
    assert words[-1] in {command.name for command in app.registered_commands}


def test_the_module_file_puts_nothing_but_the_commands_on_the_path():
    text = (ROOT / "deploy/modulefiles/otf-workflows.lua").read_text()
    assert text.count("prepend_path(") == 1
    assert 'prepend_path("PATH", pathJoin(prefix, "commands"))' in text
    assert "PYTHONPATH" not in text
    assert text.count("(") == text.count(")")


def test_programs_that_units_and_containers_start_exist():
    texts = [unit.read_text() for unit in UNITS] + [
        str(COMPOSE["services"][name]["command"]) for name in ("otf", "slurm")
    ]
    modules = {name for text in texts for name in re.findall(r"otf_workflows(?:\.\w+)+", text)}
    assert modules
    assert all(find_spec(name) for name in modules)
