from pathlib import Path
from tests.images.test_change import *
from tests.images.test_change import own
async def test_race(own, define, tmp_path, fresh_registry):
    wanted = define("alpha", "gamma", base_image="")
    try:
        await gather(build(own, wanted, tmp_path / f"cache-{number}") for number in range(4))
    finally:
        text = fresh_registry.log.read_text()
        Path("/tmp/w/h7_reg.log").write_text(text)
