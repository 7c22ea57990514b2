"""`granvit app`: the page in a browser."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from granvit.commands import DEFAULT_MODEL, Device, load_model
from granvit.errors import GranvitError


@dataclass
class App:
    """Open a page to draw boxes on pictures and ask checkpoints about them; several answer side by side.

    Needs the extra `app`. Only this machine can reach it, unless --host or --share says otherwise.
    """

    checkpoints: Positional[tuple[Path, ...]] = (DEFAULT_MODEL,)
    """Checkpoints, or run folders that hold one: the first is what came before, say."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 lets the whole network in."""
    port: int = 7860
    """The port; 0 for any that is free."""
    share: bool = False
    """Also open a public address through Gradio's servers, for a day."""
    max_pixels: int = 40_000_000
    """Larger pictures are refused."""
    max_upload_mb: int = 20
    """Larger files are refused."""
    max_questions: int = 100
    """Boxes or phrases of one request."""
    queue: int = 16
    """Requests that wait for their turn; one more is refused."""
    open: bool = False
    """Open the browser as well."""
    device: Device = "auto"
    """Where the models compute."""

    def run(self) -> int:
        try:
            import gradio  # noqa: F401
            import gradio_image_annotation  # noqa: F401
        except ModuleNotFoundError as error:
            raise GranvitError(f'the page needs the extra app: pip install -e ".[app]" ({error})') from error
        from granvit.app import Limits, build, example_pictures

        models = {name: load_model(path, self.device) for name, path in _named(self.checkpoints).items()}
        limits = Limits(self.max_pixels, self.max_upload_mb, self.max_questions, self.queue)
        with tempfile.TemporaryDirectory(prefix="granvit-app-") as folder:
            page = build(models, limits, example_pictures(Path(folder)))
            try:
                page.launch(
                    server_name=self.host,
                    server_port=self.port or None,
                    share=self.share,
                    inbrowser=self.open,
                    max_file_size=f"{self.max_upload_mb}mb",
                    allowed_paths=[folder],
                    show_error=True,
                )
            except OSError as error:  # gradio's own words about a port that is taken
                raise GranvitError(f"--port {self.port}: {error}") from error
        return 0


def _named(folders: tuple[Path, ...]) -> dict[str, Path]:
    """Each checkpoint under a name of its own: its folder's, or as much of its path as tells it from the others.

    Raises:
        GranvitError: none is named, or one twice.
    """
    if not folders:
        raise GranvitError("name at least one checkpoint")
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise GranvitError("the same checkpoint is named twice")
    names = [folder.parent.name if folder.name in ("checkpoint", "model") else folder.name for folder in folders]
    unique = len(set(names)) == len(names) and all(names)
    return dict(zip(names if unique else map(str, folders), folders, strict=True))
