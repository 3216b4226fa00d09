"""A remote Arm device, emulated, behind a tracker on loopback: a model is tuned there, and runs there, as docs/tuning.md says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import tvm_doping
from tests.emulated import emulator
from tests.emulated.test_model import model
from tests.tuning.farm import KEY, Farm
from tests.tuning.making import small
from tvm_doping import cli
from tvm_doping.errors import InvalidInput, SessionError
from tvm_doping.remote import borrow, load_remote

pytestmark = [emulator.pytestmark, pytest.mark.slow]
TARGET = "cortex-a72"


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Farm]:
    found = Farm(tmp_path_factory.mktemp("farm"), servers=0)
    serve = Path(__file__).with_name("serve.py")
    command = [*emulator.command(TARGET, found.folder), str(serve), found.address, KEY]
    found.servers.append(found.start(command, "emulated"))
    found.wait(1)
    yield found
    found.close()


def test_tuning(farm: Farm, tmp_path: Path) -> None:
    (path,) = tvm_doping.tune(
        small(),
        TARGET,
        trials=2,
        jobs=1,
        log=tmp_path / "log",
        records=tmp_path / "records",
        only="output",
        tracker=farm.address,
        key=KEY,
        cpu="BCM2711",
    )
    assert path.parent.name == f"{TARGET}-bcm2711" and path.name == "linear.json"
    lines = [json.loads(line) for line in (tmp_path / "log" / "log.jsonl").read_text().splitlines()]
    measured = [line for line in lines if "us" in line]
    assert measured and not any("error" in line for line in lines)
    assert tvm_doping.compile(small(), TARGET, records=tmp_path / "records").manifest.records


def test_running(farm: Farm, tmp_path: Path) -> None:
    made = model()
    tvm_doping.compile(made, TARGET).save(tmp_path / "bundle")
    tokens = torch.randint(0, 60, (13, 1))
    with torch.no_grad():
        logits, state = made(tokens)
        more, _ = made(tokens[:4], state)
    with load_remote(tmp_path / "bundle", tracker=farm.address, key=KEY, verify=True) as session:
        assert session.target == TARGET
        np.testing.assert_allclose(session.run(tokens.numpy()), logits.numpy(), atol=1e-5)
        kept = session.state
        np.testing.assert_allclose(session.run(tokens[:4].numpy()), more.numpy(), atol=1e-5)
        session.state = kept
        assert session.time(tokens[:4].numpy(), samples=3) > 0
        np.testing.assert_allclose(session.run(tokens[:4].numpy()), more.numpy(), atol=1e-5)
        session.reset()
        np.testing.assert_allclose(session.run(tokens.numpy()), logits.numpy(), atol=1e-5)
        with pytest.raises(SessionError, match="int64"):
            session.run(tokens.numpy().astype("int32"))
    with pytest.raises(SessionError, match="closed"):
        session.run(tokens.numpy())


class Wide(nn.Module):
    """One layer, large enough that threads would share it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(64, 256)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.lstm(x)[0]
        return y


def test_running_from_the_command_line(
    farm: Farm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Wide().eval()
    bundle = tvm_doping.compile(made, TARGET, threads=2)
    assert all(layer.plan["config"]["shared"] for layer in bundle.manifest.layers)
    bundle.save(tmp_path / "bundle")
    x = torch.randn(5, 1, 64)
    np.save(tmp_path / "x.npy", x.numpy())
    files = [str(tmp_path / name) for name in ("bundle", "x.npy", "y.npy")]
    with pytest.raises(SystemExit) as stop:
        cli.main(["run", *files[:2], "--out", files[2], "--tracker", farm.address, "--key", KEY])
    assert not stop.value.code and f"by the code for {TARGET}" in capsys.readouterr().out
    with torch.no_grad():
        np.testing.assert_allclose(np.load(files[2]), made(x).numpy(), atol=1e-5)


def test_what_is_not_there_is_named(farm: Farm) -> None:
    for tracker, key, text in (
        (farm.address, "pi5", f"a device of the key 'pi5'.*keys: {KEY}"),
        ("127.0.0.1:1", KEY, "refused.*farm tracker"),
        ("here", KEY, "HOST:PORT"),
    ):
        with pytest.raises(InvalidInput, match=text):
            borrow(tracker, key)
