"""Files of data: fetched, decoded, cached, checked."""
