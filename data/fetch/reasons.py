"""Why a candidate did not become a stored sample. One enum; the ledger holds its values and nothing else."""

from enum import StrEnum


class Reason(StrEnum):
    """Every way to be dropped; `MEANING` says each in a line. Which HTTP status it was stands beside it in the ledger."""

    # the plan
    NO_CAPTION = "no_caption"
    EXCLUDED_URL = "excluded_url"
    EXCLUDED_DOMAIN = "excluded_domain"
    EXCLUDED_SHA256 = "excluded_sha256"
    EXCLUDED_PHASH = "excluded_phash"
    # fetching
    BAD_URL = "bad_url"
    HOST_REFUSED = "host_refused"
    DNS = "dns"
    CONNECTION = "connection"
    TLS = "tls"
    TIMEOUT = "timeout"
    NOT_HTTP = "not_http"
    HTTP_4XX = "http_4xx"
    HTTP_429 = "http_429"
    HTTP_5XX = "http_5xx"
    HTTP_OTHER = "http_other"
    TOO_MANY_REDIRECTS = "too_many_redirects"
    TOO_LARGE = "too_large"
    TRUNCATED = "truncated_body"
    OPTED_OUT = "opted_out"
    ROBOTS_TXT = "robots_txt"
    ROBOTS_UNREACHABLE = "robots_unreachable"
    HASH_MISMATCH = "hash_mismatch"
    FILE_MISSING = "file_missing"
    FILE_UNREADABLE = "file_unreadable"
    PATH_REFUSED = "path_refused"
    # decoding
    NOT_AN_IMAGE = "not_an_image"
    DECODE_ERROR = "decode_error"
    UNSUPPORTED_MODE = "unsupported_mode"
    ANIMATED = "animated"
    TOO_MANY_PIXELS = "too_many_pixels"
    DECODING_BOMB = "decoding_bomb"
    TOO_SMALL = "too_small"
    TOO_LARGE_SIDE = "side_too_large_to_encode"


MEANING: dict[Reason, str] = {
    Reason.NO_CAPTION: "the candidate has no caption",
    Reason.EXCLUDED_URL: "its URL stands on an exclusion list",
    Reason.EXCLUDED_DOMAIN: "its host, or a domain above it, stands on an exclusion list",
    Reason.EXCLUDED_SHA256: "the SHA-256 of its bytes stands on an exclusion list",
    Reason.EXCLUDED_PHASH: "its perceptual hash is near one on an exclusion list",
    Reason.BAD_URL: "not a URL that can be fetched: only http and https, without credentials, also after redirects",
    Reason.HOST_REFUSED: "the host, or one it redirects to, has no public address",
    Reason.DNS: "the host name could not be resolved",
    Reason.CONNECTION: "the host could not be connected to, or broke the connection off",
    Reason.TLS: "the TLS handshake failed or the certificate is not valid",
    Reason.TIMEOUT: "the total deadline of the download passed",
    Reason.NOT_HTTP: "the answer was not HTTP",
    Reason.HTTP_4XX: "the server refused: gone, forbidden, not found (status 400 to 499, but not 429)",
    Reason.HTTP_429: "the server asked for fewer requests, or for a longer wait than allowed",
    Reason.HTTP_5XX: "the server failed (status 500 to 599)",
    Reason.HTTP_OTHER: "an answer without an image: a status other than 200 and 203 that is no error, or an unknown one",
    Reason.TOO_MANY_REDIRECTS: "more redirects than allowed, or a loop of them",
    Reason.TOO_LARGE: "more bytes than allowed, also after decompression",
    Reason.TRUNCATED: "the body ended before the length that the server had announced",
    Reason.OPTED_OUT: "an X-Robots-Tag header asks not to use the image",
    Reason.ROBOTS_TXT: "the host's robots.txt disallows the URL",
    Reason.ROBOTS_UNREACHABLE: "the host's robots.txt could not be read, so that nothing of the host may be fetched",
    Reason.HASH_MISMATCH: "the bytes are not those that the source's hash column promises",
    Reason.FILE_MISSING: "the file does not exist",
    Reason.FILE_UNREADABLE: "the file could not be read",
    Reason.PATH_REFUSED: "the file name leads out of the source's folder",
    Reason.NOT_AN_IMAGE: "the bytes are not an image of a known format, often an HTML page",
    Reason.DECODE_ERROR: "the image is damaged or cut off",
    Reason.UNSUPPORTED_MODE: "a pixel layout that has no agreed way to become RGB",
    Reason.ANIMATED: "the image has more than one frame, and animated images are dropped",
    Reason.TOO_MANY_PIXELS: "the header promises more pixels than allowed",
    Reason.DECODING_BOMB: "the file is made to take minutes to decode: a JPEG of a hundred scans, a PNG of many profiles",
    Reason.TOO_SMALL: "the shorter side is below the smallest allowed",
    Reason.TOO_LARGE_SIDE: "a side is longer than the stored format can hold",
}

# Reasons that may go away when asked again later; the others are final.
TRANSIENT = frozenset(
    {
        Reason.DNS, Reason.CONNECTION, Reason.TIMEOUT, Reason.HTTP_429, Reason.HTTP_5XX, Reason.TRUNCATED,
        Reason.ROBOTS_UNREACHABLE,
    }
)  # fmt: skip
