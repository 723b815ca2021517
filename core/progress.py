"""How far a build is, for whoever wants to show it."""


class Progress:
    """Receives what happens; this one shows nothing. Methods are called from one thread."""

    def step(self, name: str) -> None:
        """A step begins: `inspect`, `resolve`, `assemble`, `register`."""

    def planned(self, layers: int, download: int) -> None:
        """The image will have so many package layers; about so many bytes of wheels are still to be fetched."""

    def downloaded(self, size: int) -> None:
        """So many more bytes were fetched from package indexes."""

    def sent(self, size: int) -> None:
        """So many more bytes went to the registry."""

    def layer(self, title: str, size: int, reused: bool) -> None:
        """A layer is where it belongs."""

    def say(self, text: str) -> None:
        """A line for the reader."""


SILENT = Progress()
