//! The runbooks of this version.
//!
//! Their reader may have access to nothing but this port.

use axum::response::Html;
use maud::{DOCTYPE, PreEscaped, html};
use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use super::of_every_page;

const RUNBOOKS: &str = include_str!("../../../../docs/runbooks.md");

/// `/runbooks`: each runbook under the name of its alert.
pub async fn runbooks() -> Html<String> {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                (of_every_page())
                title { "Runbooks · Verve" }
            }
            body {
                header { p { a href="." { "Verve" } } }
                main { section .card .text { (PreEscaped(rendered(RUNBOOKS))) } }
            }
        }
    };
    Html(page.into_string())
}

/// Converts Markdown to HTML.
///
/// The anchor of a heading is its word in lower case. Links to other pages become text, because
/// those pages are not served here.
fn rendered(markdown: &str) -> String {
    let mut is_here = true;
    let mut events: Vec<Event<'_>> = (Parser::new(markdown).filter_map(|event| match event {
        Event::Start(Tag::Link { ref dest_url, .. }) => {
            is_here = dest_url.starts_with('#');
            is_here.then_some(event)
        }
        Event::End(TagEnd::Link) => is_here.then_some(event),
        event => Some(event),
    }))
    .collect();
    for at in 1..events.len() {
        let (before, after) = events.split_at_mut(at);
        if let (Some(Event::Start(Tag::Heading { id, .. })), Some(Event::Text(text))) =
            (before.last_mut(), after.first())
        {
            *id = Some(text.to_lowercase().into());
        }
    }
    let mut html = String::new();
    pulldown_cmark::html::push_html(&mut html, events.into_iter());
    html
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overview::Snapshot;
    use crate::words;

    #[test]
    fn links_lead_to_what_is_on_the_page() {
        let html = rendered("## VerveNoIds\n\n[that](#vervenoids), [other](other.md#it)\n");
        assert_eq!(
            html,
            "<h2 id=\"vervenoids\">VerveNoIds</h2>\n<p><a href=\"#vervenoids\">that</a>, other</p>\n"
        );
    }

    #[test]
    fn each_state_has_a_runbook() {
        let html = rendered(RUNBOOKS);
        let spool = "1 0 0".parse().expect("valid");
        let snapshot = Snapshot {
            dependencies: [("Redis".to_owned(), None)].into(),
            spools: Some([("a".to_owned(), spool)].into()),
            ..Snapshot::default()
        };
        let states = words::states(&snapshot, "a");
        assert!(!states.is_empty());
        for state in states {
            let id = state.runbook.to_lowercase();
            assert!(html.contains(&format!("<h2 id=\"{id}\">")), "{state:?}");
        }
        for (_, link) in html.match_indices("href=\"#").map(|(at, _)| html[at..].split_at(7)) {
            let id = link.split('"').next().unwrap_or_default();
            assert!(html.contains(&format!("id=\"{id}\"")), "{id}");
        }
    }
}
