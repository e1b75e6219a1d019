//! Static bearer tokens: `token,user,uid,"group1,group2"`, a line each (upstream: `plugin/pkg/authenticator/token/tokenfile`).

use std::collections::HashMap;
use std::io::Read;

use async_trait::async_trait;
use auth::{Known, TokenAuthenticator, UserInfo};

pub struct TokenFile {
    users: HashMap<String, UserInfo>,
    /// What its tokens are good for: they name no audience themselves.
    audience: String,
}

impl TokenFile {
    /// Reads once; the error says what is wrong with the contents.
    pub fn new(contents: impl Read, audience: &str) -> Result<Self, String> {
        let mut records = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .trim(csv::Trim::Fields)
            .from_reader(contents);
        let mut users = HashMap::new();
        for (index, record) in records.records().enumerate() {
            let record = record.map_err(|error| error.to_string())?;
            let number = index + 1;
            let [Some(token), Some(name), Some(uid)] = [0, 1, 2].map(|column| record.get(column)) else {
                return Err(format!(
                    "record {number}: must have at least 3 columns (token, user name, user uid), found {}",
                    record.len()
                ));
            };
            if token.is_empty() {
                return Err(format!("record {number}: the token is empty"));
            }
            let groups = record.get(3).filter(|groups| !groups.is_empty());
            let user = UserInfo {
                name: name.to_owned(),
                uid: uid.to_owned(),
                groups: groups
                    .map(|groups| groups.split(',').map(|group| group.trim().to_owned()).collect())
                    .unwrap_or_default(),
                ..UserInfo::default()
            };
            if users.insert(token.to_owned(), user).is_some() {
                tracing::warn!(
                    record = number,
                    "a token occurs twice in the token file; the last one counts"
                );
            }
        }
        Ok(Self {
            users,
            audience: audience.to_owned(),
        })
    }
}

#[async_trait]
impl TokenAuthenticator for TokenFile {
    async fn authenticate(&self, token: &str, audiences: &[String]) -> Result<Option<Known>, String> {
        let is_for_us = audiences.is_empty() || audiences.contains(&self.audience);
        let user = self.users.get(token).filter(|_| is_for_us);
        Ok(user.map(|user| Known {
            user: user.clone(),
            audiences: vec![self.audience.clone()],
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_name_users_and_groups() {
        let file = "t1,alice,u1,\"dev, ops\"\nt2,bob,u2\nt3,carol,u3,,more\n";
        let tokens = TokenFile::new(file.as_bytes(), "api").unwrap();
        let ask =
            async |token, audience: &str| tokens.authenticate(token, &[audience.to_owned()]).await.unwrap();
        let alice = ask("t1", "api").await.unwrap();
        assert_eq!(
            (alice.user.name.as_str(), alice.user.uid.as_str()),
            ("alice", "u1")
        );
        assert_eq!(alice.user.groups, ["dev", "ops"]);
        assert_eq!(alice.audiences, ["api"]);
        assert!(ask("t2", "api").await.unwrap().user.groups.is_empty());
        assert!(ask("t3", "api").await.unwrap().user.groups.is_empty());
        assert_eq!(ask("t1", "vault").await, None);
        assert_eq!(ask("t4", "api").await, None);
    }

    #[test]
    fn mistakes_name_their_record() {
        for (file, expected) in [
            (
                "t1,alice,u1\nt2,bob\n",
                "record 2: must have at least 3 columns (token, user name, user uid), found 2",
            ),
            (",alice,u1\n", "record 1: the token is empty"),
        ] {
            assert_eq!(TokenFile::new(file.as_bytes(), "api").err().unwrap(), expected);
        }
    }
}
