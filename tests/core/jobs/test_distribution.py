"""Distributions: what is refused, what each process is told of itself, and how its lines are told apart."""

import itertools
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_environments import MpiConfiguration, PyTorchConfiguration, ScriptRunConfig
from prefect_environments.core.errors import DefinitionError, NotSupportedYet
from prefect_environments.core.jobs.bootstrap import check_distribution, node_count
from prefect_environments.core.jobs.inside.ranks import Rank, local_rank, threads_of, variables_of
from prefect_environments.core.jobs.inside.relay import Relay

PLAN = {"kind": "pytorch", "backend": "gloo", "master": ["first", 29500]}


def test_the_names_and_counts_are_those_of_azure_ml() -> None:
    assert MpiConfiguration(process_count_per_node=4, node_count=2).world_size == 8
    torch = PyTorchConfiguration(process_count=8, node_count=2, communication_backend="Gloo")
    assert (torch.world_size, torch.processes) == (8, 4)
    assert (PyTorchConfiguration(node_count=3).world_size, PyTorchConfiguration(node_count=3).processes) == (3, 1)
    assert PyTorchConfiguration().communication_backend == "Nccl"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: PyTorchConfiguration(process_count=5, node_count=2), "2 nodes cannot share equally"),
        (lambda: PyTorchConfiguration(process_count=1, node_count=2), "2 nodes cannot share equally"),
        (lambda: PyTorchConfiguration(node_count=0), "node_count"),
        (lambda: PyTorchConfiguration(communication_backend="Smoke"), "communication_backend"),  # type: ignore[arg-type]
        (lambda: MpiConfiguration(process_count_per_node=100, node_count=100), "10000 processes; at most 1024"),
        (lambda: MpiConfiguration(process_count=3), "process_count"),  # type: ignore[call-arg]
        (lambda: ScriptRunConfig(script="a.py", distribution={"process_count": 5, "node_count": 2}), "share equally"),
        (lambda: ScriptRunConfig(script="a.py", secrets=("secret:a", "@Microsoft.KeyVault(VaultName=team;SecretName=a)")), "two of the secrets"),  # noqa: E501
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(make: object, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("given", [MpiConfiguration(node_count=2), PyTorchConfiguration(process_count=2)])
def test_a_stored_config_comes_back_with_its_kind_of_distribution(
    given: MpiConfiguration | PyTorchConfiguration,
) -> None:
    """The fields alone tell the kind, too."""
    config = ScriptRunConfig(script="a.py", distribution=given)
    assert ScriptRunConfig.model_validate_json(config.model_dump_json()) == config
    fields = given.model_dump(exclude={"kind"}, exclude_defaults=True)
    assert type(ScriptRunConfig(script="a.py", distribution=fields).distribution) is (
        MpiConfiguration if "process_count" not in fields else PyTorchConfiguration
    )


def test_several_nodes_on_a_work_pool_are_refused_and_several_processes_not() -> None:
    here = ScriptRunConfig(script="a.py", distribution=MpiConfiguration(node_count=2))
    check_distribution(here)
    there = here.model_copy(update={"compute_target": "pool"})
    with pytest.raises(NotSupportedYet, match="2 nodes, and a work pool runs a job in one container"):
        check_distribution(there)
    one = ScriptRunConfig(script="a.py", compute_target="pool", distribution=PyTorchConfiguration(process_count=4))
    check_distribution(one)
    assert (node_count(one), node_count(here), node_count(ScriptRunConfig(script="a.py"))) == (1, 2, 1)


def test_each_process_knows_who_it_is() -> None:
    found = variables_of(Rank(1, 2, 3, 4), PLAN)
    assert found == {
        "MASTER_ADDR": "first",
        "MASTER_PORT": "29500",
        "RANK": "6",
        "WORLD_SIZE": "12",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
        "NODE_RANK": "1",
        "GROUP_RANK": "1",
        "AZ_BATCHAI_TASK_INDEX": "2",
        "AZ_BATCH_MASTER_NODE": "first:29500",
        "AZUREML_NODE_COUNT": "3",
        "AZUREML_PROCESS_COUNT": "12",
        "PREFECT_ENVIRONMENTS_BACKEND": "gloo",
    }
    mpi = variables_of(Rank(1, 2, 3, 4), {**PLAN, "kind": "mpi", "backend": ""})
    assert {name: mpi[name] for name in mpi if name.startswith("OMPI")} == {
        "OMPI_COMM_WORLD_RANK": "6",
        "OMPI_COMM_WORLD_SIZE": "12",
        "OMPI_COMM_WORLD_LOCAL_RANK": "2",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
        "OMPI_COMM_WORLD_NODE_RANK": "2",
    }
    assert "PREFECT_ENVIRONMENTS_BACKEND" not in mpi
    assert str(Rank(1, 2, 3, 4)) == "[1:6]"


@given(st.integers(1, 5), st.integers(1, 7))
def test_ranks_are_all_numbers_once_in_the_order_of_nodes(nodes: int, processes: int) -> None:
    ranks = [Rank(node, local, nodes, processes) for node in range(nodes) for local in range(processes)]
    assert [int(variables_of(rank, PLAN)["RANK"]) for rank in ranks] == list(range(nodes * processes))
    assert all(int(variables_of(rank, PLAN)["AZ_BATCHAI_TASK_INDEX"]) == rank.local for rank in ranks)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, 0),
        ({"LOCAL_RANK": "3"}, 3),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "2", "LOCAL_RANK": "0"}, 2),
        ({"AZ_BATCHAI_TASK_INDEX": "1"}, 1),
        ({"LOCAL_RANK": "", "AZ_BATCHAI_TASK_INDEX": "5"}, 5),
    ],
)
def test_the_local_rank_is_found_wherever_it_was_written(variables: dict[str, str], expected: int) -> None:
    assert local_rank(variables) == expected


def test_processes_share_the_processors_unless_told_otherwise() -> None:
    assert threads_of(Rank(0, 0, 1, 1), {}) == {}
    assert threads_of(Rank(0, 0, 1, 10_000), {}) == {"OMP_NUM_THREADS": "1"}
    assert threads_of(Rank(0, 0, 1, 4), {"OMP_NUM_THREADS": "7"}) == {}


def relayed(pieces: list[bytes], capfd: pytest.CaptureFixture[str]) -> list[str]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as pipe:
        relay = Relay(pipe, "[0:1]")
        relay.start()
        with os.fdopen(writing, "wb", buffering=0) as end:
            for piece in pieces:
                end.write(piece)
        relay.join()
    return capfd.readouterr().out.splitlines()


def test_each_line_says_whose_it_is(capfd: pytest.CaptureFixture[str]) -> None:
    """Lines cut anywhere, an end without a line end, a bar that overwrites itself."""
    assert relayed([b"a\nb", b"c\r\nlast"], capfd) == ["[0:1] a", "[0:1] bc", "[0:1] last"]
    assert relayed([b"1%\r2%\r3%\ndone\n"], capfd) == ["[0:1] 3%", "[0:1] done"]
    assert relayed([b"\n"], capfd) == ["[0:1] "]
    assert relayed([], capfd) == []


def test_a_line_without_an_end_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    lines = relayed([b"x" * 60_000] * 20 + [b"\nnext\n"], capfd)
    assert lines[-1] == "[0:1] next"
    assert sum(map(len, lines)) < 200_000


@given(text=st.lists(st.text("ab\n", max_size=20), max_size=6))
def test_lines_are_the_same_however_they_are_cut(text: list[str]) -> None:
    whole = "".join(text)
    relay = Relay(None, "")  # type: ignore[arg-type]
    found = list(itertools.chain.from_iterable(relay._lines(piece.encode()) for piece in text if piece))
    found += relay._lines(b"")
    assert b"".join(found) == whole.encode() + (b"\n" if whole and not whole.endswith("\n") else b"")
