import re
from pathlib import Path

import pytest
from diffusers import UNet2DModel
from recon_helpers import batches, pair, recon

from qdexp.recon import progress


def test_a_log_gets_a_line_now_and_then(
    tiny_unet: UNet2DModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = batches(8)
    pair(tiny_unet, data, 4).walk(tmp_path / "quiet", recon(heldout=4)).learn_weights(data)
    out, err = capsys.readouterr()
    assert (out.count("\n"), err) == (1, "")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    pair(tiny_unet, data, 4).walk(tmp_path / "loud", recon(heldout=4)).learn_weights(data)
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert err == ""
    assert len(lines) == 18 * 4 + 1
    found = re.fullmatch(r"  weight rounding  conv_in  error (\S+)  3/18 blocks, 25% of this one", lines[8])
    assert found is not None
    assert 0 < float(found[1]) < 0.1
    assert lines[-2].endswith("18/18 blocks, 100% of this one")
