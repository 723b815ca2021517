"""The stand-ins of Azure for the tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.support.azure.parts import Azure, running_azure
from tests.support.session import Session


@pytest.fixture
def azure(test_session: Session, monkeypatch: pytest.MonkeyPatch) -> Iterator[Azure]:
    """A tenant and a vault of the test's own; this machine's own identities are out of sight."""
    for name in ("AZURE_CLIENT_ID", "AZURE_TENANT_ID", "AZURE_FEDERATED_TOKEN_FILE", "IDENTITY_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with running_azure(test_session) as running:
        yield running
