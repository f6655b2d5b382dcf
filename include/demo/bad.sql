-- A release that goes wrong without an error: it corrupts rows, loses some, and drops a table.
update orders set total = 0 where id % 3 = 0;
delete from orders where id % 10 = 0;
drop table customers;
