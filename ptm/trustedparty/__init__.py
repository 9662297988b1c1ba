"""The trusted third party: encrypted files in a member's inbox, received, and held in collections to compute on together."""
