"""What a dataset.json may say: the fields of nnU-Net, of the Decathlon and our own for masks, each with its type."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from medseg.errors import BadDataset
from medseg.io import read_json
from medseg.io.schema import validated

FILE = "dataset.json"


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _entry(value: Any) -> Any:
    return {"image": value} if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]


class ListedCase(BaseModel):
    """A case that is listed: its image or images, and its label if it has one."""

    image: Paths | None = None
    images: Paths | None = None
    label: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _has_images(self) -> ListedCase:
        if (self.image is None) == (self.images is None):
            raise ValueError("'image', a path, or 'images', a list of paths")
        return self

    @property
    def paths(self) -> list[str]:
        """Of its images, relative to the dataset's folder."""
        return self.image or self.images or []


Listed = Annotated[ListedCase, BeforeValidator(_entry)]


class DatasetDescription(BaseModel):
    """A dataset.json; what it does not say is None. Other fields may be there and mean nothing here."""

    model_config = ConfigDict(frozen=True)

    name: str | None = None
    labels: dict[str, Any] | None = None
    regions_class_order: list[int] | None = None
    channel_names: dict[str, str] | None = None
    modality: dict[str, str] | None = None
    file_ending: str | None = None
    num_training: int | None = Field(None, alias="numTraining", ge=0)
    training: list[Listed] | None = None
    test: list[Listed] | None = None
    dataset: dict[str, Listed] | None = None
    colors: dict[str, Any] | None = None
    color: Literal["keep", "rgb", "grey"] | None = None
    instances: bool | None = None
    mask_threshold: float | None = Field(None, gt=0, allow_inf_nan=False)
    synthetic: bool | None = None

    @property
    def label_fields(self) -> dict[str, Any]:
        """What `medseg.data.label_names.parse_labels` takes."""
        return {"labels": self.labels, "regions_class_order": self.regions_class_order}


def read_description(root: Path) -> dict[str, Any]:
    """What the dataset.json of a folder holds, nothing where there is none; `describe` checks it.

    Raises:
        UnreadableFile: not JSON.
        BadDataset: no object.
    """
    file = root / FILE
    given = read_json(file) if file.exists() else {}
    if not isinstance(given, dict):
        raise BadDataset("expected an object with 'labels'", path=file, fix='write {"labels": {...}, ...}')
    return given


def describe(given: Mapping[str, Any], root: Path) -> DatasetDescription:
    """The fields of a dataset.json. Raises BadDataset naming the first that is of another type than expected."""
    return validated(DatasetDescription, given, root / FILE)
