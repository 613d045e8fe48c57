"""Files of services: Roost's own keys, compose files as they are, and what is refused with a way out."""

import tomllib

import pytest
import yaml
from msgspec import UNSET

from roost.client.apply import Found, mebibytes, seconds, services_of
from roost.doors.cli.service import argv_of
from roost.doors.rest.services import policies_of
from roost.ports.errors import Invalid
from roost.scaling.policies import TargetTracking

COMPOSE = """
version: "3.8"
services:
  web:
    image: nginx:1.27
    restart: unless-stopped
    depends_on: [db]
    ports: ["8080:80", "443:443"]
    environment: [DEBUG=1, "NAME=a=b"]
    working_dir: /srv
    stop_grace_period: 1m30s
    healthcheck:
      test: ["CMD-SHELL", "curl -f http://localhost:80/health || exit 1"]
      interval: 5s
      timeout: 500ms
      retries: 4
      start_period: 20s
    deploy:
      replicas: 3
      resources:
        limits: {cpus: "0.5", memory: 512M}
      update_config: {parallelism: 2, order: start-first, failure_action: rollback}
    x-roost: {min: 1, max: 9, target: {cpu: 60}}
  db:
    image: postgres:17
    environment: {PASSWORD: x, DEBUG: true, EMPTY: }
    command: ["postgres", "-c", "fsync=off"]
"""


def one(text: str) -> Found:
    (found,) = services_of(yaml.safe_load(text))
    return found


def test_a_compose_file_is_taken_as_it_is() -> None:
    web, db = services_of(yaml.safe_load(COMPOSE))
    body = web.body
    assert (web.name, body.image, body.port, body.cwd) == ("web", "nginx:1.27", 80, "/srv")
    assert body.env == {"DEBUG": "1", "NAME": "a=b"}
    assert (body.vcpus, body.memory_mib, body.stop_grace_s) == (0.5, 512.0, 90.0)
    assert (body.min, body.max) == (1, 9), "x-roost has the last word"
    assert body.policies == ({"type": "target", "metric": "cpu", "target": 60.0},)
    health = body.health
    assert health is not UNSET
    assert (health.path, health.interval_s, health.timeout_s) == ("/health", 5.0, 0.5)
    assert (health.unhealthy, health.start_s) == (4, 20.0)
    rollout = body.rollout
    assert rollout is not UNSET
    assert (rollout.max_surge, rollout.max_unavailable, rollout.rollback) == (2, 0, True)
    assert web.ignored == ("restart", "depends_on")
    assert db.body.command == ("postgres", "-c", "fsync=off")
    assert db.body.env == {"PASSWORD": "x", "DEBUG": "true", "EMPTY": ""}
    assert db.body.min is UNSET


def test_own_keys_in_yaml_and_toml() -> None:
    text = """
[services.web]
command = "python 'my server.py'"
files = "site"
cpu = 0.25
memory = 128
min = 0
max = 4
bound = "300ms"
late = 0.02
health = "/ok"
hold = "2m"
[services.web.rollout]
drain_s = 5
"""
    (found,) = services_of(tomllib.loads(text))
    body = found.body
    assert body.command == ("python", "my server.py")
    assert (found.files, body.files) == ("site", UNSET)
    assert (body.vcpus, body.memory_mib, body.min, body.max) == (0.25, 128.0, 0, 4)
    assert (body.bound_s, body.late, body.hold_s) == (0.3, 0.02, 120.0)
    assert body.health is not UNSET
    assert body.health.path == "/ok"
    assert body.rollout is not UNSET
    assert body.rollout.drain_s == 5


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("web: {}", "no `services`"),
        ("services: {web: 3}", "no table"),
        ("services: {web: {image: x, volumes: [a]}}", "volumes is not taken"),
        ("services: {web: {image: x, build: .}}", "build the image first"),
        ("services: {web: {imgae: x}}", "imgae is not known"),
        ("services: {web: {image: x, memory: lots}}", "for example 256M"),
        ("services: {web: {image: x, ports: ['80-90:80-90']}}", "not understood"),
        ("services: {web: {image: x, environment: [A]}}", "A has no value"),
        ("services: {web: {image: x, min: many}}", "not understood"),
        ("services: {web: {image: x, health: {pth: /}}}", "services.web"),
        ("services: {web: {image: x}}\nvolumes: {a: {}}", "`volumes` at the top"),
    ],
)
def test_what_is_refused_says_where_and_what_to_do(text: str, said: str) -> None:
    with pytest.raises(Invalid) as caught:
        services_of(yaml.safe_load(text))
    assert said in str(caught.value)


def test_sizes_and_durations() -> None:
    assert [mebibytes(x) for x in (256, "1g", "512M", "1.5Gi", "1024k", "1048576")] == [
        256.0, 1024.0, 512.0, 1536.0, 1.0, 1.0,
    ]  # fmt: skip
    assert [seconds(x) for x in (3, "1m30s", "250ms", "2h")] == [3.0, 90.0, 0.25, 7200.0]


def test_a_command_that_needs_a_shell_gets_one() -> None:
    assert argv_of("python -m http.server 'a b'") == ("python", "-m", "http.server", "a b")
    assert argv_of("python server.py $PORT") == ("sh", "-c", "python server.py $PORT")
    for wrong in ("", "python 'x"):
        with pytest.raises(Invalid):
            argv_of(wrong)


def test_policies_are_typed_or_said_to_be_wrong() -> None:
    (policy,) = policies_of(({"type": "target", "metric": "cpu", "target": 60},))
    assert policy == TargetTracking(metric="cpu", target=60.0)
    with pytest.raises(Invalid, match="policy 1 is not understood"):
        policies_of(({"type": "magic"},))
