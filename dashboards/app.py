"""Streamlit script for researchers, all pages: started by `python -m dashboards results --config FILE`."""

import streamlit as st

from dashboards.opening import errors_as_one_line, open_run
from dashboards.screens.preference import preference_page


def preference() -> None:
    with errors_as_one_line():
        preference_page(open_run())


st.set_page_config(page_title="unCLIP toolkit", layout="wide")
st.navigation([st.Page(preference, title="Human preference")]).run()
