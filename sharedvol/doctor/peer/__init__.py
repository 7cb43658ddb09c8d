"""The experiments between two containers: two doctors meet, one leads and the other follows."""
