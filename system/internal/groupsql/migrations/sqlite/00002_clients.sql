-- +goose Up
-- What clients change. Administrators are those of the current version.
ALTER TABLE chat_group ADD COLUMN description VARCHAR(2048) NOT NULL DEFAULT '';
ALTER TABLE chat_group ADD COLUMN icon VARCHAR(512) NOT NULL DEFAULT '';
ALTER TABLE chat_group ADD COLUMN inactive INTEGER NOT NULL DEFAULT 0;
ALTER TABLE chat_member ADD COLUMN admin INTEGER NOT NULL DEFAULT 0;
UPDATE chat_member SET admin = 1 WHERE left_version = 0
  AND user_id = (SELECT owner_id FROM chat_group g WHERE g.group_id = chat_member.group_id);

-- Who asked for the version; all 0: an administrator of the system.
ALTER TABLE chat_change ADD COLUMN by_user BIGINT NOT NULL DEFAULT 0;
ALTER TABLE chat_change ADD COLUMN by_device BIGINT NOT NULL DEFAULT 0;
ALTER TABLE chat_change ADD COLUMN request_id BIGINT NOT NULL DEFAULT 0;
CREATE INDEX chat_change_request ON chat_change (group_id, by_user, by_device, request_id);
