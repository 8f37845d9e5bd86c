"""The quickstart as it is typed, in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # two minutes

PAGE = (Path(__file__).parents[1] / "docs" / "quickstart.md").read_text()
SHELL = "".join(re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL))
PYTHON = "".join(re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))


def test_the_commands_and_the_lines_of_python_run(tmp_path: Path) -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for command in (["bash", "-ec", SHELL], [sys.executable, "-c", f"{PYTHON}\nprint(len(frame), network.config.sample_size)"]):
        done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["6", "28"]  # fp; ptq and timestep_aware at two formats; one of other timesteps
    assert (tmp_path / "outputs" / "reports" / "first" / "index.html").is_file()
