"""PBS and SGE: scripts, and answers as their manuals and their users show them."""

from pathlib import Path

import pytest

from otf_workflows.engine.queues.system import (
    QueueJobState,
    QueueRefused,
    QueueSystem,
    QueueUnavailable,
)
from otf_workflows.errors import ConfigurationError
from otf_workflows.settings import Queue
from otf_workflows.types import FailureCause

OPENPBS = """\
Job Id: 101.head
    Job_Name = otf-dft-aa
    Job_Owner = me@login1
    resources_used.mem = 211456kb
    resources_used.walltime = 00:10:07
    job_state = F
    queue = workq
    exec_host = node7/0*8+node8/0*8
    Resource_List.walltime = 00:10:00
    Variable_List = PBS_O_HOME=/home/me,PBS_O_LANG=C,PBS_O_LOGNAME=me,
\tPBS_O_PATH=/usr/bin:/bin
    comment = Job run at Mon Nov 02 at 10:00 on (node7:ncpus=8) and failed
    Exit_status = {status}

Job Id: 102.head
    Job_Name = otf-dft-bb
    Job_Owner = me@login1
    job_state = {letter}
    queue = workq
    comment = Not Running: Not enough free nodes available
    Error_Path = login1:{error_file}
"""

TORQUE = """\
Job Id: 179.host
    Job_Name = otf-md-cc
    Job_Owner = me@host
    resources_used.walltime = 00:00:03
    job_state = C
    exec_host = node1/0
    Resource_List.walltime = 01:00:00
    exit_status = {status}
"""

SGE_XML = """<?xml version='1.0'?>
<job_info xmlns:xsd="http://www.w3.org/2001/XMLSchema">
  <queue_info>
    <job_list state="running">
      <JB_job_number>7</JB_job_number><JAT_prio>0.55</JAT_prio>
      <JB_name>otf-dft-with-a-rather-long-name</JB_name><JB_owner>me</JB_owner>
      <state>r</state><queue_name>all.q@node3.cluster</queue_name><slots>4</slots>
    </job_list>
  </queue_info>
  <job_info>
    <job_list state="pending">
      <JB_job_number>8</JB_job_number><JB_name>otf-md-x</JB_name><JB_owner>me</JB_owner>
      <state>hqw</state><queue_name></queue_name><slots>1</slots>
    </job_list>
    <job_list state="pending">
      <JB_job_number>9</JB_job_number><JB_name>mine.sh</JB_name><JB_owner>me</JB_owner>
      <state>qw</state><queue_name></queue_name><slots>1</slots>
    </job_list>
  </job_info>
</job_info>
"""

QACCT = """\
==============================================================
qname        all.q
hostname     old.cluster
jobnumber    7
failed       0
exit_status  1
ru_wallclock 5
==============================================================
qname        all.q
hostname     node3.cluster
jobname      otf-dft-a
jobnumber    7
failed       {failed}
exit_status  {status}
ru_wallclock {ran}s
maxvmem      {memory}
category     -u me -l h_rt=3600,h_vmem=2G -pe mpi 4
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """A folder of stand-ins, the only one on the PATH beside the shell's."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def make(name, text="", *, status=0, error=""):
        (folder / f"{name}.out").write_text(text)
        (folder / f"{name}.err").write_text(error)
        script = f'#!/bin/sh\necho "$@" >> "{folder}/{name}.calls"\ncat "{folder}/{name}.out"\n'
        script += f'cat "{folder}/{name}.err" >&2\nexit {status}\n'
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
        return folder / f"{name}.calls"

    return make


def directives(queue, mark):
    text = QueueSystem(queue).script(
        name="otf-dft-a", folder=Path("/x y"), command=["w", "a b"], environment={"K": "v w"}
    )
    lines = [line for line in text.splitlines() if line and not line.startswith("# ")]
    head = [line for line in lines if line.startswith(mark)]
    assert lines[0] == "#!/bin/bash"
    assert lines[1 : len(head) + 1] == head  # the batch system stops reading at the first command
    return head, lines[len(head) + 1 :]


# -- PBS ------------------------------------------------------------------------------------------


def test_a_pbs_script_asks_for_what_the_queue_says():
    queue = Queue(
        kind="pbs",
        partition="workq",
        account="ab12",
        qos="high",
        nodes=2,
        ranks=8,
        cores_per_rank=2,
        gpus=1,
        memory_MiB=4000,
        walltime_s=5400,
        directives=["#PBS -l place=excl"],
        environment=["module load qe"],
    )
    head, rest = directives(queue, "#PBS")
    assert head == [
        "#PBS -l nodes=2:ppn=8:gpus=1",
        "#PBS -l walltime=1:30:00",
        "#PBS -q workq",
        "#PBS -A ab12",
        "#PBS -N otf-dft-a",
        "#PBS -o FW_job.out",
        "#PBS -e FW_job.error",
        "#PBS -l pmem=1000mb",
        "#PBS -r n",
        "#PBS -l qos=high",
        "#PBS -l place=excl",
    ]
    assert rest == [
        "trap '' USR1",
        "module load qe",
        "export K='v w'",
        "cd '/x y' || exit 2",
        "exec w 'a b'",
    ]


def test_a_select_line_of_the_user_replaces_our_request():
    queue = Queue(kind="pbs", ranks=8, memory_MiB=10, directives=["#PBS -l select=1:ncpus=8"])
    head, _ = directives(queue, "#PBS")
    assert not [line for line in head if "nodes=" in line or "pmem" in line]


def test_pbs_jobs_are_listed_with_full_names(programs):
    programs("qselect", "101.head\n102.head\n")
    programs("qstat", OPENPBS.format(status=0, letter="Q", error_file=""))
    ended, waiting = QueueSystem(Queue(kind="pbs")).jobs()
    assert (ended.job_id, ended.name, ended.node) == ("101.head", "otf-dft-aa", "node7")
    assert ended.state is QueueJobState.ENDED
    assert waiting.state is QueueJobState.PENDING
    assert waiting.reason == "Not Running: Not enough free nodes available"


@pytest.mark.parametrize(
    ("status", "cause"),
    [
        (0, None),
        (-29, FailureCause.WALLTIME),
        (271, FailureCause.WALLTIME),  # SIGTERM, and its time was over
        (-27, FailureCause.MEMORY),
        (-3, FailureCause.NODE),
    ],
)
def test_the_end_of_an_openpbs_job_has_its_cause(programs, status, cause):
    calls = programs("qstat", OPENPBS.format(status=status, letter="Q", error_file=""))
    calls.with_name("qstat").write_text(
        f'#!/bin/sh\necho "$@" >> "{calls}"\n'
        f'[ "$1" = --version ] && echo "pbs_version = 20.0" || cat "{calls.with_suffix(".out")}"\n'
    )
    fates = QueueSystem(Queue(kind="pbs")).fates(["101.head", "102.head", "103.head"])
    assert list(fates) == ["101.head"]  # 102 waits, 103 is not known
    assert fates["101.head"].cause is cause
    assert fates["101.head"].exit_code == str(status)
    assert " on node7 after 607 s" in fates["101.head"].sentence
    assert "-x -f 101.head" in calls.read_text()


def test_a_job_deleted_before_it_ran_and_one_whose_error_file_tells(programs, tmp_path):
    programs("qstat", "Version: pbs_version" + OPENPBS.format(status=0, letter="F", error_file=""))
    pbs = QueueSystem(Queue(kind="pbs"))
    assert pbs.fates(["102"])["102"].sentence == "PBS says deleted: it was deleted before it ran"
    error_file = tmp_path / "FW_job.error"
    error_file.write_text("=>> PBS: job killed: mem 9000kb exceeded limit 1000kb\n")
    text = OPENPBS.format(status=0, letter="F", error_file=error_file) + "    Exit_status = 271\n"
    programs("qstat", text)
    assert pbs.fates(["102"])["102"].cause is FailureCause.MEMORY


@pytest.mark.parametrize(
    ("status", "cause", "words"),
    [
        (0, None, "finished"),
        (-11, FailureCause.WALLTIME, "walltime"),
        (-10, FailureCause.MEMORY, "memory"),
        (271, FailureCause.KILLED, "by signal 15"),
        (137, FailureCause.KILLED, "by signal 9"),
        (2, FailureCause.UNKNOWN, "exit code 2"),
    ],
)
def test_the_end_of_a_torque_job_has_its_cause(programs, status, cause, words):
    calls = programs("qstat", "Version: 6.1.2\n" + TORQUE.format(status=status))
    fate = QueueSystem(Queue(kind="pbs")).fates(["179.host"])["179.host"]
    assert fate.cause is cause
    assert words in fate.sentence
    assert "-x" not in calls.read_text()  # Torque would answer in XML


def test_pbs_submits_under_the_name_and_tells_a_refusal_from_silence(programs, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n#PBS -q workq\n")
    pbs = QueueSystem(Queue(kind="pbs"))
    calls = programs("qsub", "qsub: waiting for the licence\n4711.head\n")
    assert pbs.submit(script, name="otf-dft-a") == "4711.head"
    assert calls.read_text() == f"-N otf-dft-a {script}\n"
    programs("qsub", error="qsub: Unknown queue\n", status=170)
    with pytest.raises(QueueRefused, match="Unknown queue"):
        pbs.submit(script, name="otf-dft-a")
    programs("qsub", error="qsub: cannot connect to server head (errno=111)\n", status=111)
    with pytest.raises(QueueUnavailable) as caught:
        pbs.submit(script, name="otf-dft-a")
    assert not isinstance(caught.value, QueueRefused)
    programs("qdel", error="qdel: Unknown Job Id 5.head\n", status=153)
    pbs.cancel(["5.head"])
    programs("qstat", "Queue\n")
    assert pbs.check(script) == "queue workq exists"


# -- SGE ------------------------------------------------------------------------------------------


def test_an_sge_script_asks_for_what_the_queue_says():
    queue = Queue(
        kind="sge",
        partition="all.q",
        account="ab12",
        qos="proj",
        ranks=4,
        gpus=1,
        memory_MiB=4000,
        walltime_s=5400,
        directives=["#$ -pe mpi 4"],
    )
    head, rest = directives(queue, "#$")
    assert head == [
        "#$ -q all.q",
        "#$ -A ab12",
        "#$ -N otf-dft-a",
        "#$ -o FW_job.out",
        "#$ -e FW_job.error",
        "#$ -S /bin/bash",
        "#$ -cwd",
        "#$ -r n",
        "#$ -l h_rt=5400",
        "#$ -l h_vmem=1000M",
        "#$ -l gpu=1",
        "#$ -P proj",
        "#$ -pe mpi 4",
    ]
    assert rest[-1] == "exec w 'a b'"


def test_several_cores_on_sge_need_the_name_of_a_parallel_environment():
    with pytest.raises(ConfigurationError, match="parallel environment") as caught:
        directives(Queue(kind="sge", ranks=4), "#$")
    assert "-pe NAME 4" in caught.value.hint


def test_sge_jobs_are_listed_and_only_ours(programs):
    programs("qstat", SGE_XML)
    running, held = QueueSystem(Queue(kind="sge")).jobs()
    assert running.name == "otf-dft-with-a-rather-long-name"
    assert (running.state, running.node) == (QueueJobState.RUNNING, "node3.cluster")
    assert (held.job_id, held.state, held.reason) == ("8", QueueJobState.PENDING, "hqw")
    programs("qstat", "no xml at all")
    with pytest.raises(QueueUnavailable, match="no XML"):
        QueueSystem(Queue(kind="sge")).jobs()


@pytest.mark.parametrize(
    ("account", "cause"),
    [
        (("0", 0, 10, "1.0M"), None),
        (("37  : qmaster enforced h_rt limit", 137, 3601, "1.0M"), FailureCause.WALLTIME),
        (("100 : assumedly after job", 137, 3600, "1.0M"), FailureCause.WALLTIME),
        (("100 : assumedly after job", 137, 12, "2.100G"), FailureCause.MEMORY),
        (("100 : assumedly after job", 137, 12, "1.000G"), FailureCause.KILLED),
        (("26  : opening input/output file", 0, 0, "0.0"), FailureCause.NODE),
        (("0", 3, 10, "1.0M"), FailureCause.UNKNOWN),
    ],
)  # fmt: skip
def test_the_end_of_an_sge_job_has_its_cause(programs, account, cause):
    failed, status, ran, memory = account
    programs("qacct", QACCT.format(failed=failed, status=status, ran=ran, memory=memory))
    fate = QueueSystem(Queue(kind="sge")).fates(["7"])["7"]
    assert fate.cause is cause
    assert " on node3.cluster after" in fate.sentence
    programs("qacct", error="error: job id 7 not found\n", status=1)
    assert QueueSystem(Queue(kind="sge")).fates(["7"]) == {}


def test_sge_submits_under_the_name_and_tells_a_refusal_from_silence(programs, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text("#!/bin/bash\n")
    sge = QueueSystem(Queue(kind="sge"))
    calls = programs("qsub", "4711\n")
    assert sge.submit(script, name="otf-dft-a") == "4711"
    assert calls.read_text() == f"-terse -N otf-dft-a {script}\n"
    programs("qsub", error='Unable to run job: unknown queue "all.p"\nExiting.\n', status=1)
    with pytest.raises(QueueRefused):
        sge.submit(script, name="otf-dft-a")
    programs("qsub", error="error: commlib error: got select error\n", status=1)
    with pytest.raises(QueueUnavailable) as caught:
        sge.submit(script, name="otf-dft-a")
    assert not isinstance(caught.value, QueueRefused)
    programs("qsub", "verification: found suitable queue(s)\n")
    assert "suitable" in sge.check(script)
    programs("qsub", "verification: no suitable queues\n", status=1)
    with pytest.raises(QueueRefused, match="no suitable queues"):
        sge.check(script)
    programs("qdel", 'denied: job "5" does not exist\n', status=1)
    sge.cancel(["5"])
