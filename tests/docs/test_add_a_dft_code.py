"""The page on adding a code shows the code that runs."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/how-to/add_a_dft_code.md").read_text()
LABELERS = ROOT / "otf_workflows/labelers"


def test_every_block_of_python_is_that_of_abinit():
    code = (LABELERS / "abinit.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 4
    for block in blocks:
        assert textwrap.dedent(block) in code, "the page shows another abinit.py than there is"


def test_the_registry_line_is_the_one_that_is_there():
    (line,) = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
    assert line in (LABELERS / "__init__.py").read_text()
