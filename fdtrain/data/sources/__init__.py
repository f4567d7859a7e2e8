"""Published data sets, read as they were published; each module knows one layout."""
