"""Two data parties, a trusted party and a researcher fit models on data that are split by columns: `python -m examples.vertical`.

README.md beside this file tells what happens. `play` is the session, given as `ptm` commands; `people` makes the tables,
`pooled` the fit it is held against, `witness` looks for what nobody may see. The algorithms are in `images`."""
