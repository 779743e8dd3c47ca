"""Which kind of file some bytes are, whatever their sender calls them."""

from moonlet.errors import MediaError

# Family -> what senders call it. The first name is the official one. Files of one family have one reader,
# so names within a family are not worth an error.
FAMILIES = {
    "PNG": ("image/png", "image/x-png", "image/apng"),
    "JPEG": ("image/jpeg", "image/jpg", "image/pjpeg"),
    "WebP": ("image/webp",),
    "GIF": ("image/gif",),
    "MP4": (
        "video/mp4", "video/quicktime", "video/mov", "video/3gpp", "video/3gpp2", "video/3gp",
        "video/x-m4v", "video/m4v", "application/mp4",
    ),
    "WebM": ("video/webm", "video/x-matroska", "video/matroska", "video/mkv"),
    "AVI": ("video/x-msvideo", "video/avi", "video/msvideo"),
    "MPEG": ("video/mpeg", "video/mpg", "video/x-mpeg", "video/mp2p", "video/mp2t", "video/mp1s"),
    "FLV": ("video/x-flv", "video/flv"),
    "WMV": ("video/x-ms-wmv", "video/wmv", "video/x-ms-asf"),
}  # fmt: skip
PICTURES = ("PNG", "JPEG", "WebP", "GIF")

_STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF8": "GIF",
    b"\x1a\x45\xdf\xa3": "WebM",
    b"FLV\x01": "FLV",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": "WMV",
    b"\0\0\x01\xba": "MPEG",  # program stream
    b"\0\0\x01\xb3": "MPEG",  # bare pictures
}
_BOXES = (
    b"ftyp",
    b"moov",
    b"mdat",
    b"wide",
    b"free",
    b"skip",
    b"pnot",
)  # a first box of MP4 and MOV
_FORMS = {b"WEBP": "WebP", b"AVI ": "AVI"}  # of a RIFF file
_TRANSPORT_PACKET = 188  # bytes; each begins with "G"
_SAYS_NOTHING = ("", "application/octet-stream", "binary/octet-stream")


def family_of(data: bytes) -> str | None:
    """The family (a key of FAMILIES) that the first bytes belong to, None for anything else."""
    for start, family in _STARTS.items():
        if data.startswith(start):
            return family
    if data[:4] == b"RIFF":
        return _FORMS.get(data[8:12])
    if data[4:8] in _BOXES:
        return "MP4"
    if len(data) > _TRANSPORT_PACKET and data[0] == data[_TRANSPORT_PACKET] == ord("G"):
        return "MPEG"
    return None


def check_name(name: str, data: bytes) -> None:
    """Raises MediaError when the media type `name` contradicts the bytes; unknown bytes contradict nothing."""
    name, family = name.strip().lower(), family_of(data)
    if family is None or name in _SAYS_NOTHING or name in FAMILIES[family]:
        return
    official = FAMILIES[family][0]
    if name == official.partition("/")[0] + "/*":
        return
    raise MediaError(
        f"The media type is given as {name[:40]!r} but the data are {family}; send {official} instead."
    )
