"""References to a Key Vault in a job of a docker work pool: looked up in its container, by the workspace's identity."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from pydantic import SecretStr

from prefect_environments import ContainerRegistry, JobResult, ScriptRunConfig, Workspace
from prefect_environments.blocks import AzureCredentials, Keyvault
from prefect_environments.core.errors import DefinitionError, SecretError
from prefect_environments.core.jobs import run
from prefect_environments.core.redact import MASK, redact
from prefect_environments.flows import build_environment
from prefect_environments.tasks.pool import run_in_pool
from tests.flows.parts import Run, define, unique, wheel_folder
from tests.support.azure.parts import Azure, running_azure
from tests.support.base import BaseLayout
from tests.support.engine import DockerEngine
from tests.support.leaks import find_secret
from tests.support.pool import docker_worker, make_docker_pool, runs_of_jobs
from tests.support.registry import Registry
from tests.support.session import Session

pytestmark = [pytest.mark.network, pytest.mark.timeout(240)]

LOOK = """
import importlib.util, os
from prefect_environments import Run
print("lengths", len(os.environ["TOKEN"]), len(os.environ["OF_THE_POOL"]), len(os.environ["AS_THE_POOL"]))
print("by name", Run.get_context().get_secret(name="planted") == os.environ["TOKEN"])
print("azure's SDK:", importlib.util.find_spec("azure"))
print("printed", os.environ["TOKEN"])
"""


@pytest.fixture(scope="module")
def azure(test_session: Session) -> Iterator[Azure]:
    with running_azure(test_session) as found:
        yield found


@pytest.fixture(scope="module")
def of_the_pool(prefect_server: str) -> str:
    """A Secret block that the pool's template refers to."""
    Secret(value=SecretStr("of-the-pool-value")).save(name := unique("pool-secret"))
    return name


@pytest.fixture(scope="module")
def pool(test_session: Session, docker_engine: DockerEngine, azure: Azure, of_the_pool: str) -> Iterator[str]:
    """A docker pool whose containers trust the vault's authority, and get a variable by reference."""
    name, ca_file = unique("docker"), azure.authority.ca_file
    variables = {"OF_THE_POOL": f"secret:{of_the_pool}", "AS_THE_POOL": f"secret:{of_the_pool}"}
    make_docker_pool(name, volumes=[f"{ca_file}:{ca_file}:ro"], env=variables)
    with docker_worker(test_session, name, docker_engine):
        yield name


@pytest.fixture(scope="module")
def team(azure: Azure, open_registry: Registry, prefect_server: str) -> Workspace:
    """A stored workspace with a Key Vault."""
    credentials = AzureCredentials(**azure.fields)
    credentials.save(unique("worker"))
    vault = Keyvault(vault=azure.vault.vault_url, credentials=credentials)
    vault.save(unique("vault"))
    registry = ContainerRegistry(address=open_registry.address, plain_http=True)
    registry.save(unique("registry"))
    name = unique("team")
    Workspace(name=name, registry=registry, keyvault=vault, repository_prefix="work-pools").save(name)
    found = Workspace.load(name)
    assert isinstance(found, Workspace)
    return found


@pytest.fixture(scope="module")
def version(team: Workspace, base_layout: BaseLayout, tmp_path_factory: pytest.TempPathFactory) -> str:
    wheels = wheel_folder(tmp_path_factory.mktemp("wheels"))
    return build_environment(define(base_layout, wheels, "spam"), team).name


class Job:
    """Runs a script in the pool."""

    def __init__(self, team: Workspace, version: str, pool: str, folder: Path) -> None:
        self.team, self.version, self.pool, self.folder = team, version, pool, folder

    async def run(self, script: str, **fields: Any) -> JobResult:
        (self.folder / "train.py").write_text(script)
        given = {"source_directory": str(self.folder), "script": "train.py", "environment": self.version, "outputs": ""}
        config = ScriptRunConfig(**{**given, "compute_target": self.pool, **fields})
        record = await run.find_environment(self.team, self.version)
        return await asyncio.to_thread(run_in_pool, config, record, self.team, "")


@pytest.fixture
def job(team: Workspace, version: str, pool: str, tmp_path: Path) -> Job:
    return Job(team, version, pool, tmp_path)


async def test_a_vaults_secret_is_looked_up_in_the_jobs_container_and_is_nowhere_else(
    job: Job, azure: Azure, test_session: Session, of_the_pool: str
) -> None:
    """By variable and by `Run.get_secret`; variables of the pool's template are resolved, too."""
    secret = f"planted-{uuid.uuid4().hex}"
    azure.vault.put("planted", secret)
    asked = len(azure.vault.log)
    reference = f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/planted)"
    result = await job.run(
        LOOK,
        environment_variables={"TOKEN": reference, "AS_THE_POOL": "own"},
        secrets=(f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/planted/)",),
    )
    (child,) = runs_of_jobs(f"job-{result.id}")
    told = await asyncio.to_thread(Run(child.id).messages, "lengths")
    lines = told.splitlines()
    assert f"lengths {len(secret)} {len('of-the-pool-value')} {len('own')}" in lines
    assert {"by name True", "azure's SDK: None", f"printed {MASK}"} <= set(lines)
    assert any("/secrets/planted" in line for line in azure.vault.log[asked:])
    for planted in (secret, "of-the-pool-value", azure.app.secret):
        assert planted not in f"{told}{child.model_dump()}"
        assert find_secret(planted, test_session.folder / "logs") == []
    assert redact(secret) == secret  # this process never had it


async def test_a_vault_that_the_workspace_does_not_know_is_refused_before_anything_is_sent(job: Job) -> None:
    elsewhere = "@Microsoft.KeyVault(SecretUri=https://other.vault.example.com/secrets/planted)"
    with pytest.raises(SecretError) as caught:
        await job.run("print('never')", environment_variables={"TOKEN": elsewhere})
    said = f"environment_variables.TOKEN: {elsewhere}: the Key Vault other.vault.example.com is not one of"
    assert str(caught.value).startswith(said)


async def test_a_workspace_that_is_no_block_is_refused_before_anything_is_sent(job: Job, azure: Azure) -> None:
    fields = {name: getattr(job.team, name) for name in ("name", "registry", "keyvault", "repository_prefix")}
    job.team = Workspace(**fields)
    reference = f"@Microsoft.KeyVault(SecretUri={azure.vault.vault_url}/secrets/planted)"
    with pytest.raises(DefinitionError, match="save it as a block first"):
        await job.run("print('never')", environment_variables={"TOKEN": reference})
