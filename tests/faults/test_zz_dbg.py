import asyncio
from tests.faults.test_pushes import *
async def test_x(ground):
    async with proxy_to(ground.registry.address, Rule(UPLOAD, p.status(503))) as proxy:
        await settle(ground, proxy)
    for l in ground.registry.log_lines():
        if 'DELETE' in l or "uploads" in l: print(l[:400])
    for u in ground.open_uploads(): print(u, list(u.iterdir()))
