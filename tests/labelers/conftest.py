"""Small things that tests of labelers share."""

import pytest

HEADER = """<UPF version="2.0.1">
<PP_HEADER
 element="{symbol}"
 pseudo_type="{kind}"
 functional="{functional}"
 z_valence="{valence}"/>
</UPF>
"""
VALENCES = {"Li": 3.0, "Cl": 7.0, "Si": 4.0, "Al": 3.0}


@pytest.fixture
def upf_folder(tmp_path):
    """Return a function that makes a folder of files that look like pseudopotentials."""

    def make(*symbols, functional="PBE", kind="NC", name="upf"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for symbol in symbols:
            text = HEADER.format(
                symbol=symbol, kind=kind, functional=functional, valence=VALENCES[symbol]
            )
            (folder / f"{symbol}.upf").write_text(text)
        return folder

    return make
