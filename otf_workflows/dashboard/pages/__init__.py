"""One router per page: ask a query, show a template."""
