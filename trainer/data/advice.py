"""What to do where training waits for images, from what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from service.spec import RunSpec
from trainer.data.files import is_url

WORTH_SAYING = 0.2
"""A smaller share of the time spent in waiting is let be."""
WORTH_SAYING_WITHOUT_LOADERS = 0.5
"""Where the rank loads for itself, on the cores that also train, some of the time is bound to go into it."""


@dataclass(frozen=True)
class Loading:
    """One rank's, over some steps."""

    num_images: int
    seconds: float
    waited: float
    """Seconds in which the rank had nothing to train on."""
    load_seconds: float
    """Of its loader processes together, or of itself where it has none."""
    read_seconds: float
    """Of those: waiting for bytes."""
    num_loaders: int
    free_cores: int
    """That neither the rank nor its loader processes take."""
    is_expected: bool = False
    """Not yet seen: expected after the first steps."""

    @property
    def share(self) -> float:
        """Of the time spent in waiting."""
        return self.waited / max(1e-9, self.seconds)

    @property
    def per_loader(self) -> float:
        """Images per second of one loader process, or of the rank itself."""
        return self.num_images / max(1e-9, self.load_seconds)

    @property
    def needs(self) -> float:
        """Images per second that the rank could train on."""
        return self.num_images / max(1e-9, self.seconds - self.waited)

    def summary(self) -> str:
        """One line for the log."""
        processes = f"in each of {self.num_loaders} loader processes" if self.num_loaders else "in its own process"
        reading = 100 * self.read_seconds / max(1e-9, self.load_seconds)
        return (
            f"this rank loads {self.per_loader:,.0f} images/s {processes}, {reading:.0f} % of the time reading, and could train on "
            f"{'about ' if self.is_expected else ''}{self.needs:,.0f}"
        )

    def advice(self, spec: RunSpec) -> str | None:
        """What was measured and what would help; None where waiting is short."""
        if self.share < (WORTH_SAYING if self.num_loaders else WORTH_SAYING_WITHOUT_LOADERS) or not self.num_images:
            return None
        delivers = max(1, self.num_loaders) * self.per_loader
        will, about = ("will probably be", "about ") if self.is_expected else ("is", "")
        who = "its loader processes deliver" if self.num_loaders else "loading gives"
        found = (
            f"{about}{100 * self.share:.0f} % of the time {will} spent in waiting for images: this rank could train on "
            f"{about}{self.needs:,.0f} images/s, and {who} {delivers:,.0f} at most: "
        )
        views = "small_views" if spec.augmentation.small_views else "views_per_image"
        pack = f"`millionway pack {spec.data.path} --size {round(1.15 * spec.data.image_size)}`"
        loaders = f"data.num_workers (now {self.num_loaders})"
        if self.read_seconds > 0.5 * self.load_seconds:
            keep = f", raise data.cache_gib (now {spec.data.cache_gib:g}) until all fit" if is_url(spec.data.path) else ""
            return f"{found}{100 * self.read_seconds / self.load_seconds:.0f} % of it is reading: raise {loaders}{keep}, or pack ({pack})"
        if self.free_cores > 0:
            return f"{found}{self.free_cores} cores are free: raise {loaders}"
        return f"{found}all cores are busy: pack the images in a smaller size ({pack}), or lower augmentation.{views}"
