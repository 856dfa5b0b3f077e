"""HTML that pages show: exact image bytes, escaped text. Streamlit's own image element re-encodes, so it is not used here."""

import base64
import html
import struct

ENLARGE_BELOW_PX = 480  # an image narrower than this is enlarged by a whole factor, where the window has room
# The answer buttons stay in view under the images; Streamlit's own head room is for a toolbar that raters do not have.
PAGE_STYLE = "<style>.stMainBlockContainer{padding-top:1.5rem;padding-bottom:1rem;max-width:1100px}</style>"


def image_html(content: bytes, alt: str) -> str:
    """An <img> that carries these very bytes of a PNG. Small images are enlarged by the browser, pixel by pixel."""
    width, height = struct.unpack(">II", content[16:24])
    factor = max(1, ENLARGE_BELOW_PX // width)
    fit = f"min(100%,{width * factor}px,{60 * width / height:.1f}vh)"
    look = f"width:{fit};height:auto;display:block;margin:0 auto"
    if factor > 1:
        look += ";image-rendering:pixelated"
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{html.escape(alt)}" style="{look}">'


def question_html(question: str, caption: str | None) -> str:
    """The question as a heading, the caption as a quotation under it. A caption is hostile: it is shown as the text it is."""
    shown = f'<h2 style="margin:0;padding:0;font-size:1.5rem">{html.escape(question)}</h2>'
    if caption is not None:
        look = "margin:.4rem auto 0;font-size:1.15rem;font-style:italic;overflow-wrap:anywhere"
        shown += f'<p style="{look}">&ldquo;{html.escape(caption)}&rdquo;</p>'
    return f'<div style="text-align:center">{shown}</div>'
