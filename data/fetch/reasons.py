"""Why a candidate did not become a stored sample. One enum; the ledger holds its values and nothing else."""

from enum import StrEnum


class Reason(StrEnum):
    """Transient reasons may go away when asked again later; the others are final."""

    NO_CAPTION = "no_caption"
    # fetching
    BAD_URL = "bad_url"
    HOST_REFUSED = "host_refused"  # private, loopback or link-local address
    DNS = "dns"
    CONNECTION = "connection"
    TLS = "tls"
    TIMEOUT = "timeout"
    HTTP_4XX = "http_4xx"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated_body"
    OPTED_OUT = "opted_out"  # X-Robots-Tag
    FILE_MISSING = "file_missing"
    FILE_UNREADABLE = "file_unreadable"
    PATH_REFUSED = "path_refused"  # a file name that leaves the source's folder
    # decoding
    NOT_AN_IMAGE = "not_an_image"
    DECODE_ERROR = "decode_error"
    UNSUPPORTED_MODE = "unsupported_mode"
    TOO_MANY_PIXELS = "too_many_pixels"
    TOO_SMALL = "too_small"
    TOO_LARGE_SIDE = "side_too_large_to_encode"  # the chosen format cannot hold so long a side


TRANSIENT = frozenset(
    {Reason.DNS, Reason.CONNECTION, Reason.TIMEOUT, Reason.HTTP_429, Reason.HTTP_5XX, Reason.TRUNCATED}
)
