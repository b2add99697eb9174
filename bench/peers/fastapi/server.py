"""Serves with plain FastAPI, as one writes it: the work in a thread, uvicorn in front."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from network import Network, setting


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.network = Network()
    yield


app = FastAPI(lifespan=lifespan)


@app.post("/segment")
async def segment(request: Request) -> Response:
    png = await run_in_threadpool(app.state.network.segment, await request.body())
    return Response(png, media_type="image/png")


if __name__ == "__main__":
    uvicorn.run(
        "server:app",
        host="127.0.0.1",
        port=setting("PORT"),
        workers=setting("WORKERS", 1),
        # Answers 503 beyond it; the default is no bound.
        limit_concurrency=setting("BOUND") or None,
        access_log=False,
    )
