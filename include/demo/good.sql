-- A release that works: a new column, filled.
alter table orders add column currency text not null default 'EUR';
update orders set total = round(total * 1.10, 2);
