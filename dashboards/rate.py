"""Streamlit script for raters, and nothing but: started by `python -m dashboards rate --config FILE`."""

import streamlit as st

from dashboards.opening import errors_as_one_line, open_run
from dashboards.screens.rating import rating_page

st.set_page_config(page_title="Compare images", layout="wide")
with errors_as_one_line():
    rating_page(open_run())
