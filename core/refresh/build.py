"""Build what drifted as it was seen, and register it as the next version."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from prefect_environments.core import labels, steps
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import PrefectEnvironmentsError, VersionError
from prefect_environments.core.fleet.locks import kept_lock
from prefect_environments.core.redact import redact
from prefect_environments.core.refresh.outcome import RefreshOutcome
from prefect_environments.core.site import Site
from prefect_environments.core.versions import VersionRecord

logger = logging.getLogger(__name__)


async def build_drifted(
    site: Site,
    outcomes: Sequence[RefreshOutcome],
    *,
    label: str = "",
    created_by: Mapping[str, Any] | None = None,
) -> list[RefreshOutcome]:
    """Build and register each environment that drifted, from the lock that `find_drift` kept; others stay as they are.

    A failure stops no other. `label` is set on the new versions; no other label moves. Doing it again after an
    interruption builds only what is left. One after the other: what they share is then made once.
    """
    return [await _outcome(site, one, label, created_by or {}) if one.status == "drifted" else one for one in outcomes]


async def _outcome(site: Site, drift: RefreshOutcome, label: str, created_by: Mapping[str, Any]) -> RefreshOutcome:
    try:
        record = await _registered(site, drift, created_by)
    except PrefectEnvironmentsError as error:
        return _failed(drift, str(error))
    except Exception as error:  # whatever it is, it stops no other environment
        return _failed(drift, redact(f"{type(error).__name__}: {error}"))
    built = {"status": "built", "new_version": record.version, "reference": record.reference}
    done = drift.model_copy(update=built)
    logger.info("%s built: %s", done.label(), done.reference)
    if not label:
        return done
    try:
        reason = f"refreshed from version {drift.version}"
        await labels.set_label(site, drift.name, label, record.version, reason=reason, created_by=created_by)
    except PrefectEnvironmentsError as error:
        return _failed(done, f"version {record.version} is built, but the label {label} could not be set: {error}")
    return done


async def _registered(site: Site, drift: RefreshOutcome, created_by: Mapping[str, Any]) -> VersionRecord:
    versions = site.workspace.versions
    newest = await versions.newest(drift.name)
    if newest is not None and newest.version > drift.version and newest.image_hash == drift.image_hash:
        return newest  # registered by an earlier try, or by somebody who built the same
    if newest is None or newest.version != drift.version:
        there = f"version {newest.version}" if newest else "no version"
        raise VersionError(
            f"{drift.name} has {there} by now, and what was seen was its drift from version {drift.version}: refresh "
            "it again"
        )
    definition = EnvironmentDefinition(**newest.definition)
    asked = await asyncio.to_thread(steps.definition_hash, site.workspace, definition)
    if asked != drift.definition_hash:  # a version says what was asked for: builds find it by that
        raise VersionError(
            f"what {drift.name} asks for is not what it was when its drift was seen, because the workspace's default "
            "base image or index is another one, or files that the definition names changed: refresh it again"
        )
    lock = await kept_lock(site, drift.image_hash)
    built = await steps.build(site, definition, lock)
    origin = {**created_by, "refreshed_from": drift.version}
    return await steps.register(site, definition, built, created_by=origin)


def _failed(drift: RefreshOutcome, reason: str) -> RefreshOutcome:
    logger.warning("%s failed: %s", drift.label(), reason)
    return drift.model_copy(update={"status": "failed", "reason": reason})
