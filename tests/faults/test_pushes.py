"""A whole build through a proxy that breaks one thing: it ends right or with an error that helps, never in between.

Each case is run twice: with the fault, and again when the fault is over.
"""

import asyncio
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from prefect_environments.core.errors import PrefectEnvironmentsError
from prefect_environments.core.hashes import image_hash
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.versions import VersionRecord
from tests.faults import proxy as p
from tests.faults.conftest import Ground
from tests.faults.parts import NAME, PATIENT, QUICK, push, settled_leftovers
from tests.faults.proxy import Proxy, Rule, proxy_to

BLOB_CHECK = r"^HEAD .*/demo/blobs/"
SESSION = r"^POST .*/demo/blobs/uploads/$"
UPLOAD = r"^PUT .*/demo/blobs/uploads/"
TAG = r"^PUT .*/demo/manifests/[0-9a-f]{64}$"
MANIFEST = r"^PUT .*/demo/manifests/"
MOUNT = r"^POST .*\?mount="
OTHERS_MOUNT = r"^POST .*\?mount=.*from=(?!.*demo)"
OWN_MOUNT = r"^POST .*\?mount=.*from=.*demo"  # of a blob that is not there: it opens a session
BASE_MANIFEST = r"^GET /v2/base/.*/manifests/"
BASE_CONFIG = r"^GET /v2/base/.*/blobs/"
BASE_LAYER = BASE_CONFIG
CHECK = r"^HEAD .*/demo/manifests/"
FALLBACK = r"^GET .*/demo/manifests/sha256-"
ANY = r"^"
NO_MOUNTS = Rule(MOUNT, p.unmounted, None)
SOON = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
HTML = p.status(200, body=b"<html><body>Welcome to the hotel's network</body></html>", kind="text/html")
DENIED = b'{"errors": [{"code": "DENIED", "message": "quota of the team is exhausted"}]}'

PASSING: dict[str, list[Rule]] = {
    "500 to a check of a blob": [Rule(BLOB_CHECK, p.status(500), 2)],
    "502 to a new session": [Rule(SESSION, p.status(502), 2)],
    "503 to an upload": [Rule(UPLOAD, p.status(503))],
    "500 to the manifest": [Rule(TAG, p.status(500), 2)],
    "503 to the check of the tag": [Rule(CHECK, p.status(503), 2)],
    "502 to the mount": [Rule(MOUNT, p.status(502), 2)],
    "504 to the index of referrers": [Rule(FALLBACK, p.status(504))],
    "429 with seconds": [Rule(SESSION, p.status(429, {"Retry-After": "1"}))],
    "429 with a date": [Rule(UPLOAD, p.status(429, {"Retry-After": SOON}))],
    "429 with nonsense": [Rule(TAG, p.status(429, {"Retry-After": "when it rains"}))],
    "dropped before an upload's body": [Rule(UPLOAD, p.drop_at_once, 2)],
    "dropped in an upload's body": [Rule(UPLOAD, p.drop_in_request(100), 2)],
    "dropped before the manifest": [Rule(TAG, p.drop_at_once, 2)],
    "the reply to a new session lost": [Rule(SESSION, p.lose_reply)],
    "the reply to an upload lost": [Rule(UPLOAD, p.lose_reply, 2)],
    "the reply to the manifest lost": [Rule(TAG, p.lose_reply, 2)],
    "the reply to every manifest lost once": [Rule(MANIFEST, p.lose_reply, 1, n) for n in range(3)],
    "the reply to a mount lost": [Rule(OTHERS_MOUNT, p.lose_reply, 2)],
    "the reply to a small blob's new session lost": [Rule(OWN_MOUNT, p.lose_reply, 2)],
    "an upload stalls": [Rule(UPLOAD, p.stall)],
    "a stored upload stalls": [Rule(UPLOAD, p.stall_before_reply)],
    "the stored manifest stalls": [Rule(TAG, p.stall_before_reply)],
    "a check stalls": [Rule(BLOB_CHECK, p.stall)],
    "mounts are answered by a session": [NO_MOUNTS],
    "mounts are not allowed": [Rule(MOUNT, p.status(405), None)],
    "mounts are denied": [Rule(MOUNT, p.status(403), None)],
    "mounts are unknown": [Rule(MOUNT, p.status(404), None)],
    "a download dropped in its body": [NO_MOUNTS, Rule(BASE_LAYER, p.drop_in_response(1000), 2, 1)],
    "a download stalls in its body": [NO_MOUNTS, Rule(BASE_LAYER, p.stall_in_response(1000), 1, 1)],
    "a download is 503": [NO_MOUNTS, Rule(BASE_LAYER, p.status(503), 1, 1)],
    "the base's manifest is cut off": [Rule(BASE_MANIFEST, p.drop_in_response(50), 2)],
    "the session is lost": [Rule(UPLOAD, p.status(404), 1)],
    "a lie about the digest of a manifest that was asked for by digest": [
        Rule(BASE_MANIFEST + "sha256:", p.header("Docker_Content_Digest", "sha256:" + "0" * 64), None)
    ],
    "no content digest is told": [Rule(ANY, p.header("Docker_Content_Digest", ""), None)],
}

FAILING: dict[str, tuple[list[Rule], str]] = {
    "500 to every upload": ([Rule(UPLOAD, p.status(500), None)], "upload of blob"),
    "503 to everything": ([Rule(ANY, p.status(503), None)], "HTTP 503"),
    "429 to every session": ([Rule(SESSION, p.status(429, {"Retry-After": "0"}), None)], "429.*sign in or try again"),
    "413 to an upload": ([Rule(UPLOAD, p.status(413), None)], "upload of blob.*413.*size"),
    "507 to an upload": ([Rule(UPLOAD, p.status(507), None)], "upload of blob.*507"),
    "the quota is used up": (
        [Rule(UPLOAD, p.status(403, body=DENIED, kind="application/json"), None)], "quota of the team is exhausted"),
    "no right to push": ([Rule(SESSION, p.status(401, {"WWW-Authenticate": "Basic"}), None)], "User 'ann'.*pull,push"),
    "no right to write the manifest": ([Rule(TAG, p.status(403), None)], "upload of manifest.*pull,push"),
    "dropped in every upload's body": ([Rule(UPLOAD, p.drop_in_request(100), None)], "upload of blob"),
    "every upload stalls": ([Rule(UPLOAD, p.stall, None)], "upload of blob.*timed out"),
    "every reply to the manifest lost": ([Rule(TAG, p.lose_reply, None)], "upload of manifest"),
    "an upload is corrupted": ([Rule(UPLOAD, p.corrupt_request, None)], "upload of blob.*another digest"),
    "the manifest is corrupted": ([Rule(TAG, p.corrupt_request, None)], "upload of manifest"),
    "a lie about an upload's digest": (
        [Rule(UPLOAD, p.header("Docker_Content_Digest", "sha256:" + "0" * 64), None)], "upload of blob"),
    "a lie about the manifest's digest": (
        [Rule(TAG, p.header("Docker_Content_Digest", "sha256:" + "0" * 64), None)], "upload of manifest"),
    "a session without an address": ([Rule(SESSION, p.header("Location", ""), None)], "no usable address"),
    "a session at a nonsense address": ([Rule(SESSION, p.header("Location", "http://[::1"), None)], "no usable"),
    "a session at a file": ([Rule(SESSION, p.header("Location", "file:///etc/passwd"), None)], "no usable address"),
    "a base with wrong bytes": ([NO_MOUNTS, Rule(BASE_LAYER, p.corrupt, None, 1)], "download of blob .*wrong bytes"),
    "a base cut short": ([NO_MOUNTS, Rule(BASE_LAYER, p.truncate(1000), None, 1)], "blob .* bytes"),
    "a base config with wrong bytes": ([Rule(BASE_CONFIG, p.corrupt, None)], "download of blob .*wrong bytes"),
    "a base manifest with wrong bytes": ([Rule(BASE_MANIFEST, p.corrupt, None)], "manifest"),
    "a base manifest cut short": ([Rule(BASE_MANIFEST, p.truncate(50), None)], "manifest"),
    "the base's manifest always cut off": ([Rule(BASE_MANIFEST, p.drop_in_response(50), None)], "manifest"),
    "the base is gone": ([Rule(BASE_MANIFEST, p.status(404), None)], "base image"),
    "web pages for everything": ([Rule(ANY, HTML, None)], "check that a registry answers"),
    "nobody answers": ([Rule(ANY, p.drop_at_once, None)], "no answer"),
    "everything stalls": ([Rule(ANY, p.stall, None)], "timed out"),
}  # fmt: skip

SECRET_SESSIONS = re.compile("new session|a session|stall")
"""Cases in which nobody but the registry knows the address of a session, so that nobody can close it."""

ADVICE = re.compile(r"(?i)\b(check|try|look|ask|set|sign in|build it|correct|remove|push|pull)\b")


async def settle(ground: Ground, proxy: Proxy, case: str = "") -> VersionRecord | PrefectEnvironmentsError:
    plan, workspace = ground.at(proxy.address, limits=QUICK if "stall" in case else PATIENT)
    async with asyncio.timeout(60):
        try:
            return await push(plan, workspace, ground.folder / "cache")
        except PrefectEnvironmentsError as error:
            return error


async def check_state(ground: Ground, outcome: VersionRecord | PrefectEnvironmentsError) -> None:
    """Whatever happened: a version only with its sound image, a tag only on a sound image, and nothing left lying."""
    _, workspace = ground.at(ground.registry.address)
    registered = await workspace.versions.versions(NAME)
    async with ground.client() as client:
        repository = client.repository(ground.repository)
        tag = digests.hex_of(image_hash(ground.plan.lock))
        tagged = await repository.find_manifest(tag)
        for digest in {*(record.digest for record in registered), *([tagged.digest] if tagged else [])}:
            assert digest == ground.plan.digest
            await validate(repository, digest, ground.folder / "validate")
    assert [record.version for record in registered] == ([1] if isinstance(outcome, VersionRecord) else [])
    assert await settled_leftovers(ground.folder) == []


@pytest.mark.parametrize("case", PASSING)
async def test_what_passes_does_not_stop_a_push(case: str, ground: Ground) -> None:
    rules = [Rule(rule.where, rule.fault, rule.times, rule.skip) for rule in PASSING[case]]
    async with proxy_to(ground.registry.address, *rules) as proxy:
        outcome = await settle(ground, proxy, case)
        assert proxy.hits, "the fault was never met"
        assert isinstance(outcome, VersionRecord), outcome
        assert (outcome.digest, outcome.version) == (ground.plan.digest, 1)
        await check_state(ground, outcome)
        if not SECRET_SESSIONS.search(case):
            assert await ground.open_uploads() == []


@pytest.mark.parametrize("case", FAILING)
async def test_what_stays_ends_in_an_error_that_helps_and_the_next_run_completes(case: str, ground: Ground) -> None:
    given, words = FAILING[case]
    rules = [Rule(rule.where, rule.fault, rule.times, rule.skip) for rule in given]
    async with proxy_to(ground.registry.address, *rules) as proxy:
        outcome = await settle(ground, proxy, case)
        assert proxy.hits, "the fault was never met"
        assert isinstance(outcome, PrefectEnvironmentsError), f"it ended as {outcome}"
        text = str(outcome)
        assert re.search(words, text), text
        assert proxy.address in text and (ground.prefix in text or ground.base in text), text
        assert ADVICE.search(text.replace("upload of", "")), text
        assert ground.registry.password not in text
        await check_state(ground, outcome)
        if not SECRET_SESSIONS.search(case):
            assert await ground.open_uploads() == []
        proxy.rules.clear()
        again = await settle(ground, proxy)
        assert isinstance(again, VersionRecord), again
        assert (again.digest, again.version) == (ground.plan.digest, 1)
        await check_state(ground, again)
