"""Settings of how a network is trained, of each stage that trains one; and the base of all sections of the config."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A section of the config: a setting that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", validate_default=True)


class Fit(Section):
    """How a network is trained."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "cosine", "plateau", "exponential"] = Field(
        "cosine",
        description="of the learning rate: unchanged; falling at each step; or halved when val no longer improves",
    )
    final_learning_rate: float | None = Field(
        None,
        gt=0,
        description="where the schedule ends; null: at a hundredth of learning_rate (not used by constant)",
    )
    plateau_patience: int = Field(3, ge=1, description="plateau: epochs without improvement before the rate is halved")
    early_stopping: int | None = Field(
        None, ge=1, description="stop after this many epochs without improvement on val; null: never"
    )
    optimizer: Literal["adamw", "adam", "sgd", "rmsprop"] = Field(
        "adamw", description="sgd has a Nesterov momentum of 0.9; adam with weight decay is adamw"
    )
    weight_decay: float = Field(1e-4, ge=0)
    ema: float = Field(0.0, ge=0, lt=1, description="momentum of the running average of the weights; 0 switches it off")
    augment: bool = True
    sources: list[str] | None = Field(None, description="train on these sources only; null takes all that fit")
    leave_out: list[str] = Field([], description="sources never trained on, where `sources` is null")

    @model_validator(mode="after")
    def _falling(self) -> Fit:
        if self.final_learning_rate is not None and self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate must not be above learning_rate, {self.learning_rate}. Received: "
                f"{self.final_learning_rate}"
            )
        return self


class SegmentFit(Fit):
    """Training of the segmentation network."""

    epochs: int = Field(24, ge=1)
    batch_size: int = Field(8, ge=1)
    ema: float = Field(0.99, ge=0, lt=1)
    splits: list[Literal["train", "test", "external"]] = Field(
        ["train"], min_length=1, description="splits trained on; those named here are not judged. val picks the epoch"
    )


class ClassifyFit(Fit):
    """Training of the classifier, its second step."""

    # Features averaged over the lungs, AUROC of TB against normal, shenzhen left out: 2 epochs 0.841, 4 epochs 0.832, 8
    # epochs 0.826. With zones it gains nothing elsewhere: configs/tb.yaml takes 0.
    epochs: int = Field(4, ge=0, description="epochs with the encoder free; 0 keeps it as it came")
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-4, gt=0)
    ema: float = Field(0.99, ge=0, lt=1)
