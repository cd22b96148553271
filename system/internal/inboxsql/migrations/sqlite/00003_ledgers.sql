-- +goose Up
-- What the device has sent to the group and which members have it, with peer 0.
ALTER TABLE inbox_marks ADD COLUMN ledger BLOB;
