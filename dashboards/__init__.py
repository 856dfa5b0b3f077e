"""Streamlit pages, on top of every other room; nothing imports them."""
