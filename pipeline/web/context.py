"""What the routers share: the queue of jobs, the settings, and the models that depend on the chain's classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import Request, Security
from fastapi.security import APIKeyHeader, HTTPBearer

from cxr_pipeline.data.formats import labels
from cxr_pipeline.results.outputs import columns
from cxr_pipeline.run.chain import Chain
from cxr_pipeline.web.answers import job_models, result_model
from cxr_pipeline.web.jobs import Job, JobQueue
from cxr_pipeline.web.settings import Settings
from cxr_pipeline.web.uploads import receive

MOST_FILES = 200  # films of one job; larger ones are for `pipeline run`


@dataclass
class Server:
    """One server: its chain, its settings, its queue of jobs."""

    settings: Settings
    chain: Chain

    def __post_init__(self) -> None:
        self.queue = JobQueue(self.chain, self.settings)
        self.columns = columns(self.chain.identity.classes, self.chain.identity.columns)
        self.result_model = result_model(self.columns)
        self.job_model, self.results_model = job_models(self.result_model)
        self.most = min(MOST_FILES, self.settings.queue)

    @property
    def secured(self) -> list[Any]:
        """Dependencies for the document alone: `Guard` looks at the key, before anything is read."""
        if self.settings.api_key is None:
            return []
        return [
            Security(APIKeyHeader(name="X-API-Key", auto_error=False, scheme_name="ApiKey")),
            Security(HTTPBearer(auto_error=False, scheme_name="Bearer")),
        ]

    async def submit(self, request: Request, *, most: int, pictures: bool) -> Job:
        """Take the films of a request and queue them.

        A full queue is said before anything is read; a place in it is taken when the films are there, so that slow
        senders hold none.

        Raises:
            ApiError: the queue is full, or the request holds no films, too many, or too large ones.
        """
        self.queue.check_room()
        folder = self.queue.new_folder()
        try:
            uploads = await receive(request, folder / "uploads", self.settings, most)
            with self.queue.places(len(uploads)) as places:
                return self.queue.submit(folder, uploads, places, pictures=pictures)
        except BaseException:
            self.queue.drop_folder(folder)
            raise


def multipart(*, several: bool) -> dict[str, Any]:
    """The request body for the OpenAPI document; it is read by hand, so that keys and queue are looked at first."""
    film: dict[str, Any] = {"type": "string", "format": "binary", "description": f"{labels()}."}
    field = {"type": "array", "items": film, "minItems": 1} if several else film
    schema = {"type": "object", "required": ["file"], "properties": {"file": field}, "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
