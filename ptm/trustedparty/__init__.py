"""The trusted third party: encrypted files in a member's inbox, received, and held in collections to compute on together.

Sending, at any member:     `send` (the steps), `sources` (what a person named), `sealing` and `uploading` (both at once),
                            `outbox` (what survives a crash), `sent` (what became of it); `dropfolder`, with `dropfiles` for
                            its files; `forward`
Receiving, at the party:    `watch` (the loop), `verdict` (on a manifest), `receive` (take, publish, answer), `arrival` (of one
                            file); `fetch` (the same by hand, for who is no party)
Holding:                    `settings` (party.toml), `collection` (what is there, who may compute), `ledger` (what must not be
                            forgotten), `purge`, `byhand` (a person asks for a purge)
Files on their way:         `formats` (age, Crypt4GH), `unsealing`, `streams`

Where to start: `send` and `receive`. What travels is in `ptm.transfer`, and where it lies in `ptm.layout`."""
