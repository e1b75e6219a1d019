//! Words for the client beside the answer: whoever works on a request may add some, and they leave as `Warning`
//! headers. Upstream passes a recorder in the context (`k8s.io/apiserver/pkg/warning`).

use std::cell::RefCell;

tokio::task_local! {
    static WARNINGS: RefCell<Vec<String>>;
}

/// Tells the client once, however often it is said. Outside of requests there is nobody to tell.
pub fn add(text: impl Into<String>) {
    let text = text.into();
    let _ = WARNINGS.try_with(|warnings| {
        let mut warnings = warnings.borrow_mut();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    });
}

pub fn add_all(texts: impl IntoIterator<Item = String>) {
    texts.into_iter().for_each(add);
}

/// Runs the work on a request, and gives what was added meanwhile.
pub async fn collecting<T>(work: impl Future<Output = T>) -> (T, Vec<String>) {
    WARNINGS
        .scope(RefCell::default(), async {
            let done = work.await;
            (done, WARNINGS.with(RefCell::take))
        })
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn warnings_stay_with_their_request() {
        add("nobody hears this");
        let work = |name: &'static str| {
            collecting(async move {
                add(name);
                tokio::task::yield_now().await;
                add(name);
            })
        };
        let ((_, first), (_, second)) = tokio::join!(work("a"), work("b"));
        assert_eq!((first, second), (vec!["a".to_owned()], vec!["b".to_owned()]));
    }
}
