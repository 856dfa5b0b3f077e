"""The results page of the human preference study: win rates with intervals, people and simulated raters apart."""

from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from data.pipeline.run import Run
from humaneval.results import are_of_this_study, read_results, results_table


def preference_page(run: Run) -> None:
    results = read_results(run)
    st.title("Human preference")
    rows = results["questions"]
    st.caption(
        f"Run {run.folder.name}, study {results['study']['hash'][:12]}. Not sure counts half a win for each side."
    )
    if not are_of_this_study(run, results):
        st.warning("These results are of another study than the one that stands in this run.")
    for simulated in (False, True):
        chosen = [row for row in rows if row["simulated"] is simulated]
        if chosen:
            st.subheader("Simulated raters" if simulated else "People")
            if simulated:
                st.warning(results["note"])
            st.altair_chart(win_rate_chart(chosen), width="stretch")
            st.dataframe(results_table({"questions": chosen}), hide_index=True, width="stretch")


def win_rate_chart(rows: list[dict[str, Any]]) -> alt.LayerChart:
    """Win rates of system a as points with their two-way clustered intervals, and the line where neither system wins."""
    table = pd.DataFrame(rows)
    table["question"] = table["question"].str.replace("_", " ")
    title = (
        f"{rows[0]['system_a']} preferred over {rows[0]['system_b']}{' (simulated)' if rows[0]['simulated'] else ''}"
    )
    scale, axis = alt.Scale(domain=[0, 1]), alt.Axis(format="%")
    y = alt.Y("question:N", title=None, sort=None, axis=alt.Axis(labelLimit=200))
    bars = (
        alt.Chart(table)
        .mark_rule(strokeWidth=2)
        .encode(y=y, x=alt.X("lo:Q", scale=scale, axis=axis, title=title), x2="hi:Q")
    )
    points = (
        alt.Chart(table)
        .mark_point(filled=True, size=90)
        .encode(y=y, x="win_rate:Q", tooltip=["question", "n", "raters"])
    )
    even = alt.Chart(pd.DataFrame({"x": [0.5]})).mark_rule(strokeDash=[4, 4], color="gray").encode(x="x:Q")
    return (even + bars + points).properties(height=60 + 40 * len(rows))
