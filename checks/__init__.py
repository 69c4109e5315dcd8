"""The computation behind each claim, a module a chapter: a page calls it, a test calls it at other seeds."""
