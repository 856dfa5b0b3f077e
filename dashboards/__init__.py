"""Streamlit screens, on top of every other room; nothing imports them."""
