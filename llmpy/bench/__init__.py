"""Speed, measured beside a peer on the same machine in the same run: the ratio counts, a time alone says little."""
