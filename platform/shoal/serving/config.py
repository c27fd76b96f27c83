"""The `serve` section of the config."""

from pydantic import Field, field_validator

from shoal.config.schema import Section


class ServeSection(Section):
    host: str = Field("127.0.0.1", description="the address to listen on; 0.0.0.0: of all networks")
    port: int = Field(8000, ge=0, le=65535, description="0: a free one")
    replicas: int = Field(
        0, ge=0, description="of each model, as Ray Serve replicas; 0: in this process, without Ray"
    )
    max_replicas: int | None = Field(
        None, ge=1, description="up to which Ray Serve adds replicas under load; null: none are added"
    )
    cpus_per_replica: float = Field(1.0, gt=0, description="its threads; may be a fraction, e.g. 0.5")
    weights: tuple[float, ...] | None = Field(
        None,
        description="share of the requests that each model answers at the routes without a model's name, e.g. [9, 1]; "
        "null: the first answers all",
    )
    max_batch_rows: int = Field(256, ge=1, description="rows of requests that are predicted together")
    max_queue: int = Field(128, ge=1, description="requests of a model at a time; more are refused with 503")
    max_rows: int = Field(10_000, ge=1, description="of a request")
    max_body_mb: float = Field(16.0, gt=0, description="of a request; a larger one is refused with 413")
    max_new_tokens: int = Field(1024, ge=1, description="of a text, the most that a request may ask for")
    timeout_s: float = Field(30.0, gt=0, description="of a request, reading it included; then 408")
    look_every_s: float = Field(10.0, gt=0, description="how often an alias is looked up")

    @field_validator("weights")
    @classmethod
    def _are_shares(cls, weights: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if weights is not None and (min(weights, default=-1) < 0 or sum(weights) <= 0):
            raise ValueError("a share is at least 0, and one is above 0")
        return weights

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1e6)
