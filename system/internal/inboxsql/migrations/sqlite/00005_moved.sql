-- +goose Up
-- Rows up to this seq have come from the log into inbox_rows; those above are in the log.
CREATE TABLE inbox_moved (
  upto INTEGER NOT NULL
);
INSERT INTO inbox_moved (upto) SELECT COALESCE(MAX(seq), 0) FROM inbox_rows;
