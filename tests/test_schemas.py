"""Documents come back from the job store as what they were."""

from monty.json import MontyDecoder, MontyEncoder

from otf_workflows.schemas import Frame, Origin


def test_a_document_survives_the_job_store():
    frame = Frame(numbers=[3], cell_A=[[4, 0, 0], [0, 4, 0], [0, 0, 4]], positions_A=[[0] * 3])
    assert MontyDecoder().decode(MontyEncoder().encode(frame)) == frame


def test_outputs_of_versions_that_had_all_documents_in_one_module_are_read():
    stored = {"@module": "otf_workflows.schemas", "@class": "Origin", "cycle": 2}
    assert MontyDecoder().process_decoded(stored) == Origin(cycle=2)
