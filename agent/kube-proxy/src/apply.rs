//! Brings the kernel from the rules it has to those it should have. A change names only the chains that changed, and
//! single rules of the chains that all Services share; a full sync writes everything, a few hundred Services at a time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::ruleset::{Base, Fragment, JUMPS, Shared, is_per_service};
use crate::tracker::Key;
use netfilter::Family;
use netfilter::iptables::{self, Changes, IptablesError, Saved};

/// iptables-restore needs quadratic time for the chains of one input.
const SERVICES_A_TIME: usize = 250;
/// Finding a rule to delete costs a look at its whole chain; beyond this many the chain is written anew.
const DELETIONS: usize = 32;

/// What is remembered of a Service's rules: enough to see what changes.
#[derive(Debug, Default, PartialEq, Eq, Clone)]
struct Known {
    chains: BTreeMap<String, u64>,
    shared: BTreeSet<(Shared, String)>,
}

impl Known {
    fn of(fragment: &Fragment) -> Self {
        let digest = |rules: &Vec<String>| {
            let mut hasher = DefaultHasher::new();
            rules.hash(&mut hasher);
            hasher.finish()
        };
        Self {
            chains: fragment
                .chains
                .iter()
                .map(|(chain, rules)| (chain.clone(), digest(rules)))
                .collect(),
            shared: fragment.shared.clone(),
        }
    }

    fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.shared.is_empty()
    }
}

/// The rules of one family in the kernel, as far as this process knows them.
pub struct Applied {
    family: Family,
    base: Base,
    /// `None`: unknown, only a full sync helps.
    known: Option<HashMap<Key, Known>>,
    /// Digest of each of our chains as iptables-save last told it, and the chains that we changed since.
    seen: HashMap<(String, String), u64>,
    touched: BTreeSet<(String, String)>,
}

impl Applied {
    pub fn new(family: Family, base: Base) -> Self {
        Self {
            family,
            base,
            known: None,
            seen: HashMap::new(),
            touched: BTreeSet::new(),
        }
    }

    pub fn needs_full(&self) -> bool {
        self.known.is_none()
    }

    /// Makes the next sync a full one.
    pub fn forget(&mut self) {
        self.known = None;
    }

    /// Rules by table, as metrics tell them.
    pub fn rule_counts(&self) -> [(&'static str, usize); 2] {
        let known = || self.known.iter().flat_map(HashMap::values);
        let shared = |table| {
            known()
                .flat_map(|k| &k.shared)
                .filter(|(c, _)| c.place().0 == table)
                .count()
        };
        let own = known().map(|k| k.chains.len()).sum::<usize>();
        [("filter", shared("filter")), ("nat", shared("nat") + own)]
    }

    /// Applies the new rules of some Services; an empty fragment takes a Service away. Returns the number of lines.
    pub async fn change(&mut self, changes: &[(Key, Fragment)]) -> Result<usize, IptablesError> {
        let Some(known) = &self.known else { return Ok(0) };
        let plan = plan(known, changes, &self.base);
        let input = plan.nat.render("nat") + &plan.filter.render("filter");
        if let Err(error) = iptables::restore(self.family, &input).await {
            self.forget();
            return Err(error);
        }
        self.remember(changes);
        for (table, changes) in [("nat", &plan.nat), ("filter", &plan.filter)] {
            self.touched.extend(touched(table, changes));
        }
        Ok(plan.nat.lines() + plan.filter.lines())
    }

    fn remember(&mut self, changes: &[(Key, Fragment)]) {
        let known = self.known.get_or_insert_default();
        for (key, fragment) in changes {
            let new = Known::of(fragment);
            match new.is_empty() {
                true => known.remove(key),
                false => known.insert(key.clone(), new),
            };
        }
    }

    /// Writes all rules, whatever the kernel has. Each Service's own chains come first; then one input leads traffic
    /// into them; what nobody wants any more goes last.
    pub async fn full(
        &mut self,
        fragments: impl Iterator<Item = (Key, Fragment)>,
    ) -> Result<usize, IptablesError> {
        self.known = None;
        let saved = iptables::save(self.family).await?;
        let kernel = Saved::parse(&saved);
        let mut shared: BTreeMap<Shared, Vec<String>> = BTreeMap::new();
        let mut known = HashMap::new();
        let mut own_chains = BTreeSet::new();
        let mut nat = Changes::default();
        let mut lines = 0;
        for (chain, rules) in &self.base.nat {
            nat.chain(chain, rules);
        }
        for (index, (key, fragment)) in fragments.enumerate() {
            if index > 0 && index % SERVICES_A_TIME == 0 {
                iptables::restore(self.family, &nat.render("nat")).await?;
                lines += nat.lines();
                nat = Changes::default();
            }
            for (chain, rules) in &fragment.chains {
                nat.chain(chain, rules);
                own_chains.insert(chain.clone());
            }
            for (chain, rule) in &fragment.shared {
                shared.entry(*chain).or_default().push(rule.clone());
            }
            known.insert(key, Known::of(&fragment));
        }
        let mut filter = Changes::default();
        for (chain, rules) in &self.base.filter {
            filter.chain(chain, rules);
        }
        for chain in Shared::ALL {
            let table = if chain.place().0 == "nat" {
                &mut nat
            } else {
                &mut filter
            };
            let rules = shared.remove(&chain).unwrap_or_default();
            write_shared(table, chain, &rules, &self.base);
        }
        for jump in JUMPS.iter().filter(|jump| !kernel.has_jump(jump)) {
            let table = if jump.0 == "nat" { &mut nat } else { &mut filter };
            table.rules.push(format!("-I {} {}", jump.1, jump.2));
        }
        iptables::restore(self.family, &(nat.render("nat") + &filter.render("filter"))).await?;
        lines += nat.lines() + filter.lines();
        let stale: Vec<String> = kernel
            .chains
            .iter()
            .filter(|(table, chain)| *table == "nat" && is_per_service(chain) && !own_chains.contains(*chain))
            .map(|(_, chain)| (*chain).to_owned())
            .collect();
        for deleted in stale.chunks(4 * SERVICES_A_TIME) {
            let changes = Changes {
                deleted: deleted.to_vec(),
                ..Changes::default()
            };
            iptables::restore(self.family, &changes.render("nat")).await?;
        }
        self.known = Some(known);
        self.look(true).await?;
        Ok(lines)
    }

    /// Whether somebody else changed our chains since the last look.
    pub async fn drifted(&mut self) -> Result<bool, IptablesError> {
        self.look(false).await
    }

    async fn look(&mut self, afresh: bool) -> Result<bool, IptablesError> {
        let saved = iptables::save(self.family).await?;
        let kernel = Saved::parse(&saved);
        let now: HashMap<(String, String), u64> = kernel
            .digests()
            .filter(|((_, chain), _)| chain.starts_with("KUBE-"))
            .map(|((table, chain), digest)| ((table.to_owned(), chain.to_owned()), digest))
            .collect();
        let known = self
            .known
            .iter()
            .flat_map(HashMap::values)
            .flat_map(|k| k.chains.keys());
        let missing = known
            .into_iter()
            .any(|chain| !kernel.chains.contains(&("nat", chain.as_str())));
        let edited = !afresh
            && self
                .seen
                .iter()
                .any(|(place, digest)| !self.touched.contains(place) && now.get(place) != Some(digest));
        let cut_off = JUMPS.iter().any(|jump| !kernel.has_jump(jump));
        self.seen = now;
        self.touched.clear();
        Ok(missing || edited || cut_off)
    }
}

fn touched(table: &'static str, changes: &Changes) -> impl Iterator<Item = (String, String)> {
    let of_rule = |rule: &String| rule.split(' ').nth(1).map(str::to_owned);
    let ruled = changes.rules.iter().filter_map(of_rule);
    let whole = changes.chains.iter().chain(&changes.deleted).cloned();
    whole.chain(ruled).map(move |chain| (table.to_owned(), chain))
}

fn write_shared(table: &mut Changes, chain: Shared, rules: &[String], base: &Base) {
    let (_, name) = chain.place();
    table.chain(name, rules);
    if chain == Shared::Services {
        table
            .rules
            .extend(base.node_ports.iter().map(|rule| format!("-A {name} {rule}")));
    }
}

#[derive(Default)]
struct Plan {
    nat: Changes,
    filter: Changes,
}

/// What leads from the known rules to those of `changes`.
fn plan(known: &HashMap<Key, Known>, changes: &[(Key, Fragment)], base: &Base) -> Plan {
    let mut plan = Plan::default();
    let none = Known::default();
    let mut added: BTreeMap<Shared, BTreeSet<&String>> = BTreeMap::new();
    let mut removed: BTreeMap<Shared, BTreeSet<&String>> = BTreeMap::new();
    for (key, fragment) in changes {
        let (old, new) = (known.get(key).unwrap_or(&none), Known::of(fragment));
        for (chain, rules) in &fragment.chains {
            if old.chains.get(chain) != new.chains.get(chain) {
                plan.nat.chain(chain, rules);
            }
        }
        let gone = old.chains.keys().filter(|chain| !new.chains.contains_key(*chain));
        plan.nat.deleted.extend(gone.cloned());
        for (chain, rule) in fragment.shared.difference(&old.shared) {
            added.entry(*chain).or_default().insert(rule);
        }
        for (chain, rule) in old.shared.difference(&fragment.shared) {
            removed.entry(*chain).or_default().insert(rule);
        }
    }
    for chain in Shared::ALL {
        let (place, name) = chain.place();
        let table = if place == "nat" {
            &mut plan.nat
        } else {
            &mut plan.filter
        };
        let added = added.remove(&chain).unwrap_or_default();
        let removed = removed.remove(&chain).unwrap_or_default();
        if removed.len() <= DELETIONS {
            table
                .rules
                .extend(removed.iter().map(|rule| format!("-D {name} {rule}")));
            table
                .rules
                .extend(added.iter().map(|rule| format!("-I {name} {rule}")));
            continue;
        }
        let of_chain = known
            .values()
            .flat_map(|known| &known.shared)
            .filter(|(c, _)| *c == chain);
        let stay = of_chain
            .map(|(_, rule)| rule)
            .filter(|rule| !removed.contains(rule));
        let rules: Vec<String> = stay.chain(added.iter().copied()).cloned().collect();
        write_shared(table, chain, &rules, base);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(chains: &[(&str, &str)], shared: &[&str]) -> Fragment {
        Fragment {
            chains: chains
                .iter()
                .map(|(c, rule)| ((*c).into(), vec![(*rule).into()]))
                .collect(),
            shared: shared
                .iter()
                .map(|rule| (Shared::Services, (*rule).into()))
                .collect(),
        }
    }

    fn key(name: &str) -> Key {
        ("ns".into(), name.into())
    }

    #[test]
    fn a_change_names_only_what_changed() {
        let old = fragment(
            &[
                ("KUBE-SVC-A", "-j KUBE-SEP-1"),
                ("KUBE-SEP-1", "x"),
                ("KUBE-SEP-3", "z"),
            ],
            &["a"],
        );
        let other = fragment(&[("KUBE-SVC-B", "y")], &["b"]);
        let known = HashMap::from([(key("a"), Known::of(&old)), (key("b"), Known::of(&other))]);
        let new = fragment(
            &[
                ("KUBE-SVC-A", "-j KUBE-SEP-2"),
                ("KUBE-SEP-2", "x"),
                ("KUBE-SEP-3", "z"),
            ],
            &["c"],
        );
        let changes = plan(&known, &[(key("a"), new)], &Base::default());
        assert_eq!(
            changes.nat.render("nat"),
            "*nat\n:KUBE-SEP-2 - [0:0]\n:KUBE-SVC-A - [0:0]\n:KUBE-SEP-1 - [0:0]\n\
             -A KUBE-SEP-2 x\n-A KUBE-SVC-A -j KUBE-SEP-2\n-D KUBE-SERVICES a\n-I KUBE-SERVICES c\n\
             -X KUBE-SEP-1\nCOMMIT\n"
        );
        assert_eq!(changes.filter.render("filter"), "");
        let same = plan(&known, &[(key("b"), other)], &Base::default());
        assert_eq!(same.nat.render("nat"), "");
    }

    #[test]
    fn many_deletions_write_the_chain_anew() {
        let names: Vec<String> = (0..=DELETIONS).map(|n| format!("s{n}")).collect();
        let mut known: HashMap<Key, Known> = names
            .iter()
            .map(|n| (key(n), Known::of(&fragment(&[], &[n]))))
            .collect();
        known.insert(key("stays"), Known::of(&fragment(&[], &["stays"])));
        let gone: Vec<_> = names.iter().map(|n| (key(n), Fragment::default())).collect();
        let base = Base {
            node_ports: vec!["last".into()],
            ..Base::default()
        };
        assert_eq!(
            plan(&known, &gone, &base).nat.render("nat"),
            "*nat\n:KUBE-SERVICES - [0:0]\n-A KUBE-SERVICES stays\n-A KUBE-SERVICES last\nCOMMIT\n"
        );
    }
}
